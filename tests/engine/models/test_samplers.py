"""The samplers an audit draws with beside DDIM, against diffusers' own."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from engine.models.test_sampler import COND, UNCOND, predict
from torch import Tensor

from toys.tiny import fake_denoiser
from trust_engine.errors import SpecError
from trust_engine.models.contract import scaled_linear, stack
from trust_engine.models.sampler import SAMPLERS, SamplerSettings, initial_noise, sample, timesteps

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}


def reference(made: object, steps: int, cfg: float, x: Tensor, scale: bool) -> Tensor:
    """Sample with a scheduler of diffusers, on our timesteps: each of its own rounds otherwise."""
    made.set_timesteps(timesteps=timesteps(steps))  # type: ignore[attr-defined]
    x = x * made.init_noise_sigma  # type: ignore[attr-defined]
    for t in made.timesteps:  # type: ignore[attr-defined]
        seen = made.scale_model_input(x, t) if scale else x  # type: ignore[attr-defined]
        now = torch.full((len(x),), int(t))
        free = predict(seen, now, stack([UNCOND] * len(x)))
        told = predict(seen, now, COND)
        x = made.step(free + cfg * (told - free), t, x).prev_sample  # type: ignore[attr-defined]
    return x


def ours(name: str, steps: int, cfg: float, seeds: list[int] | None = None) -> Tensor:
    denoiser, x = fake_denoiser(predict, scaled_linear()), initial_noise([1, 2], (3, 5))
    settings = SamplerSettings(steps, cfg, name)  # type: ignore[arg-type]
    return list(sample(denoiser, x, COND, UNCOND, settings, seeds))[-1][1]


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("steps", [2, 10, 20])
def test_euler_equals_diffusers(steps: int, cfg: float) -> None:
    made = EulerDiscreteScheduler(1000, **BETAS, **LEADING)
    theirs = reference(made, steps, cfg, initial_noise([1, 2], (3, 5)), scale=True)
    torch.testing.assert_close(ours("euler", steps, cfg), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [2, 10, 20])
def test_dpmpp_2m_equals_diffusers(steps: int) -> None:
    made = DPMSolverMultistepScheduler(
        1000, **BETAS, **LEADING, final_sigmas_type="zero", lower_order_final=True,
        euler_at_final=True,
    )  # fmt: skip
    theirs = reference(made, steps, 4.0, initial_noise([1, 2], (3, 5)), scale=False)
    torch.testing.assert_close(ours("dpmpp_2m", steps, 4.0), theirs, rtol=1e-3, atol=1e-3)


def test_euler_a_adds_each_picture_its_own_noise() -> None:
    first, again, other = (ours("euler_a", 5, 4.0, seeds) for seeds in ([1, 2], [1, 2], [1, 3]))
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_all_find_the_picture_that_a_perfect_model_knows(name: str) -> None:
    picture, schedule = torch.randn(1, 4, 3, 5), scaled_linear()

    def perfect(x: Tensor, t: Tensor, _cond: object) -> Tensor:
        a = schedule.alphas[t].view(-1, 1, 1, 1)
        return (x - a.sqrt() * picture) / (1 - a).sqrt()

    x = initial_noise([3], (3, 5))
    settings = SamplerSettings(20, 1.0, name)  # type: ignore[arg-type]
    denoiser = fake_denoiser(perfect, schedule)
    last = list(sample(denoiser, x, COND.select(slice(1)), UNCOND, settings))[-1][1]
    # DDIM as Stable Diffusion sets it stops at the first alpha, a little noise short of the end.
    torch.testing.assert_close(last, picture, rtol=0, atol=0.15)


@pytest.mark.parametrize("name", SAMPLERS)
def test_skipping_starts_in_the_middle(name: str) -> None:
    denoiser, x = fake_denoiser(predict, scaled_linear()), initial_noise([1, 2], (3, 5))
    settings = SamplerSettings(10, 2.0, name)  # type: ignore[arg-type]
    whole = [t for t, _ in sample(denoiser, x, COND, UNCOND, settings)]
    part = [t for t, _ in sample(denoiser, x, COND, UNCOND, settings, skip=4)]
    assert whole == timesteps(10) and part == whole[4:]


@pytest.mark.parametrize("name", ["ddim", "euler", "lcm"])
def test_what_a_step_yields_is_what_the_next_goes_on_from(name: str) -> None:
    denoiser, x = fake_denoiser(predict, scaled_linear()), initial_noise([1, 2], (3, 5))
    settings = SamplerSettings(10, 2.0, name)  # type: ignore[arg-type]
    whole = [state for _, state in sample(denoiser, x, COND, UNCOND, settings)]
    part = [state for _, state in sample(denoiser, whole[3], COND, UNCOND, settings, skip=4)]
    torch.testing.assert_close(part[-1], whole[-1], rtol=1e-3, atol=1e-4)


def test_euler_a_ends_each_step_with_as_much_noise_as_the_next_one_expects() -> None:
    """Of a model that sees nothing in it: what is kept and what is added make up its sigma."""
    schedule = scaled_linear()

    def blank(x: Tensor, t: Tensor, _cond: object) -> Tensor:
        return x / (1 - schedule.alphas[t].view(-1, 1, 1, 1)).sqrt()

    denoiser, x = fake_denoiser(blank, schedule), initial_noise([1], (64, 64))
    settings, cond = SamplerSettings(10, 1.0, "euler_a"), COND.select(slice(1))
    steps = list(sample(denoiser, x, cond, UNCOND, settings, [1]))
    for (_, state), (after, _) in pairwise(steps):
        expected = float((1 - schedule.alphas[after]).sqrt())
        assert float(state.std()) == pytest.approx(expected, rel=0.05)


def test_unknown_sampler() -> None:
    with pytest.raises(SpecError, match="sampler 'magic' is unknown"):
        SamplerSettings(sampler="magic")  # type: ignore[arg-type]
