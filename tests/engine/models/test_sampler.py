"""DDIM against diffusers' own, step by step."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from toys.tiny import fake_denoiser
from trust_engine.errors import SpecError
from trust_engine.models.contract import Conditioning, NoiseSchedule, scaled_linear, stack
from trust_engine.models.sampler import SamplerSettings, ddim, initial_noise, timesteps

COND = Conditioning(torch.tensor([[[0.3]], [[-0.7]]]))
UNCOND = Conditioning(torch.tensor([[[0.1]]]))


def predict(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Depend on the latents, the timestep and the prompt of each row."""
    told = cond.context[:, 0, 0].view(-1, 1, 1, 1)
    return torch.tanh(0.8 * x.roll(1, -1) + told + t.view(-1, 1, 1, 1) / 1000)


def scheduler(prediction: str, steps: int) -> DDIMScheduler:
    """Configure diffusers as Stable Diffusion does."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    kind = {"eps": "epsilon", "v": "v_prediction"}[prediction]
    made = DDIMScheduler(
        **betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=kind
    )
    made.set_timesteps(steps)
    return made


def reference(prediction: str, steps: int, cfg: float, x: Tensor) -> list[tuple[int, Tensor]]:
    """Sample with diffusers' scheduler."""
    made, states = scheduler(prediction, steps), []
    for t in made.timesteps:
        now = t.expand(len(x))
        free, told = predict(x, now, stack([UNCOND] * len(x))), predict(x, now, COND)
        x = made.step(free + cfg * (told - free), t, x).prev_sample
        states.append((int(t), x))
    return states


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_equals_diffusers(prediction: str, cfg: float, steps: int) -> None:
    denoiser = fake_denoiser(predict, scaled_linear(prediction))  # type: ignore[arg-type]
    x = initial_noise([1, 2], (3, 5))
    mine = list(ddim(denoiser, x, COND, UNCOND, SamplerSettings(steps, cfg)))
    theirs = reference(prediction, steps, cfg, x)
    assert [t for t, _ in mine] == [t for t, _ in theirs]
    for (_, here), (_, there) in zip(mine, theirs, strict=True):
        # float32: diffusers divides where we multiply; differences add up over the steps.
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 7, 20, 50, 999])
def test_timesteps_equal_diffusers(steps: int) -> None:
    assert timesteps(steps) == scheduler("eps", steps).timesteps.tolist()


def test_schedule_equals_diffusers() -> None:
    torch.testing.assert_close(scaled_linear().alphas, scheduler("eps", 1).alphas_cumprod)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_passes_are_what_the_unet_is_called_with(cfg: float) -> None:
    calls: list[int] = []

    def counted(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        assert len(x) == len(t) == len(cond)
        calls.append(len(x))
        return predict(x, t, cond)

    denoiser, settings = fake_denoiser(counted, scaled_linear()), SamplerSettings(5, cfg)
    list(ddim(denoiser, initial_noise([0, 1], (2, 2)), COND, UNCOND, settings))
    assert sum(calls) == settings.passes(2)
    assert len(calls) == 5


def test_one_uncond_row_serves_all_as_one_each_does() -> None:
    denoiser, x = fake_denoiser(predict, scaled_linear()), initial_noise([0, 1], (2, 2))
    one = list(ddim(denoiser, x, COND, UNCOND, SamplerSettings(2)))
    each = list(ddim(denoiser, x, COND, stack([UNCOND, UNCOND]), SamplerSettings(2)))
    torch.testing.assert_close(one[-1][1], each[-1][1], rtol=0, atol=0)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_split_undoes_noising(prediction: str) -> None:
    """A perfect prediction gives back the picture and the noise."""
    schedule: NoiseSchedule = scaled_linear(prediction)  # type: ignore[arg-type]
    x0, noise, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 400, 999])
    a = schedule.alphas[t].view(-1, 1, 1, 1)
    output = noise if prediction == "eps" else a.sqrt() * noise - (1 - a).sqrt() * x0
    got_x0, got_noise = schedule.split(schedule.noised(x0, t, noise), t, output)
    torch.testing.assert_close(got_x0, x0, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(got_noise, noise, rtol=1e-3, atol=1e-4)


def test_a_picture_has_its_own_noise() -> None:
    """A seed gives the same picture whatever its neighbours in the batch."""
    torch.testing.assert_close(initial_noise([5, 6], (2, 3))[1:], initial_noise([6], (2, 3)))
    assert not torch.equal(*initial_noise([5, 6], (2, 3)))


@pytest.mark.parametrize(
    ("steps", "cfg", "name"),
    [(0, 4, "steps"), (-3, 4, "steps"), (1000, 4, "steps"), (5, 0.5, "cfg"), (5, 31, "cfg"),
     (5, float("nan"), "cfg")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(steps: int, cfg: float, name: str) -> None:
    with pytest.raises(SpecError, match=f"^{name} "):
        SamplerSettings(steps, cfg)
