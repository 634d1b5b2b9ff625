"""Models distilled to a few steps: sampled, recorded and audited as they draw."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import torch
from engine.models.test_sampler import COND, UNCOND, predict
from torch import Tensor

from toys.audit_toy import FEW, LEVEL, TOPIC, ToyJudge, forgets_the_thing, toy_model
from toys.tiny import fake_denoiser, tiny_model, tiny_spec
from trust_engine.audit import Audit
from trust_engine.diff import WeightDiff, combine
from trust_engine.diff.model_sampling import sampling_of
from trust_engine.errors import SpecError
from trust_engine.frontend.subjects import passes
from trust_engine.models.contract import scaled_linear
from trust_engine.models.sampler import SamplerSettings, initial_noise, sample, sampled
from trust_engine.spec import Sampling, UnlearnSpec
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.trajectory import sampler_of

DISTILLED = [how for how in get_args(Sampling) if how != "guided"]


def drawn(how: Any, seeds: list[int], skip: int = 0, x: Tensor | None = None) -> list[Any]:
    denoiser = fake_denoiser(predict, scaled_linear())
    x = initial_noise([1, 2], (3, 5)) if x is None else x
    settings = sampled(SamplerSettings(), how)
    return list(sample(denoiser, x, COND, UNCOND, settings, seeds, skip))


def test_few_steps_are_taken_without_guidance() -> None:
    assert sampled(SamplerSettings(20, 4.0), "guided") == SamplerSettings(20, 4.0)
    for how in DISTILLED:
        settings = sampled(SamplerSettings(20, 4.0), how)
        assert (settings.steps, settings.cfg, settings.distilled) == (4, 1.0, True)
        assert settings.passes(3) == 12
        assert [t for t, _ in drawn(how, [1, 2])] == [999, 749, 499, 249]
    assert sampled(SamplerSettings(2, 4.0), "turbo").steps == 2, "fewer may be asked for"


@pytest.mark.parametrize("how", ["lightning", "hyper"])
def test_lightning_and_hyper_step_as_diffusers_do(how: Any) -> None:
    from diffusers import DDIMScheduler

    made = DDIMScheduler(
        1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, timestep_spacing="trailing",
    )  # fmt: skip
    made.set_timesteps(4)
    x = initial_noise([1, 2], (3, 5))
    for t in made.timesteps:
        x = made.step(predict(x, t.expand(2), COND), t, x).prev_sample
    torch.testing.assert_close(drawn(how, [1, 2])[-1][1], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["turbo", "lcm"])
def test_turbo_and_lcm_noise_what_each_step_predicts_anew(how: Any) -> None:
    """The last picture is the one predicted; each before it is that one, diffused anew."""
    schedule, x = scaled_linear(), initial_noise([1, 2], (3, 5))
    steps = drawn(how, [1, 2])
    for (now, after), then in zip(steps, [749, 499, 249, None], strict=True):
        t = torch.full((2,), now)
        x0, _ = schedule.split(x, t, predict(x, t, COND))
        if then is None:
            assert torch.equal(after, x0)
            continue
        a = schedule.alphas[then]
        noise = (after - a.sqrt() * x0) / (1 - a).sqrt()
        assert abs(float(noise.mean())) < 0.5 and 0.7 < float(noise.std()) < 1.3
        x = after


def test_fresh_noise_is_a_pictures_own_and_found_again_on_resuming() -> None:
    first, other = drawn("lcm", [1, 2]), drawn("lcm", [1, 3])
    for (_, a), (_, b) in zip(first[:-1], other[:-1], strict=True):
        assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])
    noise = [first[i][1] - first[i + 1][1] for i in (0, 1)]
    assert not torch.allclose(noise[0], noise[1], atol=0.1), "each step has noise of its own"
    later = drawn("lcm", [1, 2], 2, first[1][1])
    assert [t for t, _ in later] == [499, 249]
    assert torch.equal(later[-1][1], first[-1][1])


@pytest.mark.parametrize("how", DISTILLED)
@pytest.mark.parametrize("robust", [False, True])
def test_a_run_records_as_the_model_draws(how: Any, robust: bool) -> None:
    spec = tiny_spec(sampling=how, robust=robust, steps=1)
    assert sampler_of(spec).distilled and sampler_of(spec).cfg == 1.0
    assert UnlearnSpec.from_json(spec.to_json()) == spec
    assert "sampling" not in tiny_spec().to_json(), "a spec is compared by its text"
    run = Unlearning(tiny_model(), spec)
    for _ in run:
        if run._recording is not None and run._recording.over:
            assert run._recording.timesteps.tolist()[0] == 999
            assert run._recording.latents.shape[1] == sampler_of(spec).steps
    assert sampling_of([run.diff]) == how


def test_a_diff_says_how_its_model_is_sampled() -> None:
    def labelled(how: object) -> WeightDiff:
        return WeightDiff({}, {"spec": json.dumps({"sampling": how})})

    assert sampling_of([]) == sampling_of([WeightDiff({})]) == "guided"
    merged = WeightDiff({}, {"parts": [{"spec": json.dumps({"sampling": "turbo"})}]})
    assert sampling_of([labelled("turbo"), merged]) == "turbo"
    for strange in ("no such", ["x"], None, 3):
        assert sampling_of([labelled(strange)]) == "guided"
    assert sampling_of([WeightDiff({}, {"spec": "[" * 9999})]) == "guided"
    with pytest.raises(SpecError, match=r"sampled otherwise \(lcm, turbo\)"):
        sampling_of([labelled("lcm"), merged])
    with pytest.raises(SpecError, match=r"sampled otherwise \(guided, turbo\)"):
        combine([(labelled("turbo"), 1.0), (WeightDiff({}, {"spec": tiny_spec().to_json()}), 1.0)])


def test_an_audit_draws_a_distilled_model_as_it_is_meant_to_be() -> None:
    """Neither other samplers nor guidance, for which it was not made, nor a negative prompt."""
    model = toy_model()
    told = forgets_the_thing(model)[0][0]
    diff = WeightDiff(told.offsets, {**told.provenance, "spec": json.dumps({"sampling": "lcm"})})

    def names(**more: Any) -> set[str]:
        made = Audit(model, ToyJudge(), [(diff, 1.0)], TOPIC, LEVEL, **more)
        return {cell.name.split(".")[1] for cell in made.cells if "." in cell.name}

    usual = names(settings=FEW)
    assert {"samplers", "cfg", "steps", "negative_prompt"} <= usual
    assert usual - names() == {"samplers", "cfg", "steps", "negative_prompt"}
    run = Audit(model, ToyJudge(), [(diff, 1.0)], TOPIC, LEVEL)
    assert run.context.settings == sampled(SamplerSettings(), "lcm")


def test_test_pictures_are_counted_as_they_are_drawn() -> None:
    assert passes(8) == 384 and passes(8, "turbo") == 64
