"""What a folder's scheduler and a file's metadata say of the schedule: computed, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from toys.tiny import fake_denoiser
from trust_engine.errors import ModelError
from trust_engine.models.checkpoint import Checkpoint
from trust_engine.models.contract import Conditioning, NoiseSchedule, scaled_linear
from trust_engine.models.families import MODELS
from trust_engine.models.sampler import SamplerSettings, ddim, timesteps
from trust_engine.models.schedule import schedule_of


def read(metadata: dict[str, str] | None = None, **scheduler: Any) -> NoiseSchedule:
    """Read the schedule of an SDXL folder with this scheduler, or of a file with this metadata."""
    model = Checkpoint(Path("model"), "diffusers", {}, {}, metadata or {}, scheduler)
    return schedule_of(model, MODELS[2])


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler", "DDIMScheduler", None])
def test_stable_diffusions_own_schedulers_are_read(name: str | None) -> None:
    told = {} if name is None else {"_class_name": name}
    found = read(**told, beta_schedule="scaled_linear", trained_betas=None)
    assert torch.equal(found.alphas, scaled_linear().alphas)
    assert (found.prediction, found.spacing) == ("eps", "leading")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("EDMDPMSolverMultistepScheduler", "the EDM schedule"),
        ("EDMEulerScheduler", "the EDM schedule"),
        ("FlowMatchEulerDiscreteScheduler", "flow matching"),
        ("CosineDPMSolverMultistepScheduler", "not Stable Diffusion's"),
        ("DDPMWuerstchenScheduler", "not Stable Diffusion's"),
        ("SomethingNewScheduler", "not Stable Diffusion's"),
        (7, "not Stable Diffusion's"),
        ("LCMScheduler", "an LCM .*few steps without guidance"),
        ("TCDScheduler", "Hyper-SD.*few steps without guidance"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(name: Any, what: str) -> None:
    with pytest.raises(ModelError, match=rf"{name}.*{what}|{what}.*{name}|{what}"):
        read(_class_name=name)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"prediction_type": "sample"}, "predicts 'sample'"),
        ({"prediction_type": "flow_prediction"}, "predicts 'flow_prediction'"),
        ({"prediction_type": 3}, "predicts 3"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule is 'squaredcos_cap_v2'"),
        ({"beta_schedule": "linear"}, "beta_schedule is 'linear'"),
        ({"num_train_timesteps": 50}, "num_train_timesteps is 50"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"timestep_spacing": "karras"}, "timestep_spacing is 'karras'"),
    ],
)
def test_settings_that_are_not_computed_are_refused(told: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(_class_name="EulerDiscreteScheduler", **told)


def test_spacing_and_terminal_snr_are_read() -> None:
    found = read(
        _class_name="DDIMScheduler", timestep_spacing="trailing", rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
    )  # fmt: skip
    assert (found.prediction, found.spacing) == ("v", "trailing") and found.alphas[-1] < 1e-6
    trained = read({"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"})
    assert trained.prediction == "v" and trained.alphas[-1] < 1e-6


@pytest.mark.parametrize(
    "told",
    [
        {"modelspec.architecture": "stable-diffusion-xl-turbo-v1"},
        {"modelspec.tags": "photo, Lightning"},
        {"modelspec.tags": "LCM"},
        {"modelspec.usage_hint": "4 steps, Hyper SD"},
    ],
)
def test_a_distilled_model_that_says_so_is_refused(told: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=r"few steps without guidance.*distilled from"):
        read(told)


def test_a_name_alone_says_nothing() -> None:
    read({"modelspec.title": "Turbo Dreams", "modelspec.architecture": "stable-diffusion-xl-v1"})
    read({"modelspec.tags": "hyperrealistic, turbocharged, lightnings"})


@pytest.mark.parametrize("steps", [1, 4, 8, 20, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_are_spaced_as_diffusers_does(spacing: Any, steps: int) -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(timestep_spacing=spacing, steps_offset=int(spacing == "leading"))
    theirs.set_timesteps(steps)
    found = timesteps(steps, spacing)
    if (spacing, steps) != ("linspace", 1):  # theirs is 0 there: it would draw nothing
        assert found == theirs.timesteps.tolist()
    assert all(0 <= t <= 999 for t in found) and found == sorted(set(found), reverse=True)


def test_a_run_samples_with_the_models_spacing() -> None:
    schedule = NoiseSchedule(scaled_linear().alphas, "eps", "trailing")
    denoiser = fake_denoiser(lambda x, t, cond: 0.1 * x, schedule)
    cond = Conditioning(torch.zeros(1, 1, 1))
    settings = SamplerSettings(4, 1.0)
    at = [now for now, _ in ddim(denoiser, torch.ones(1, 4, 2, 2), cond, cond, settings)]
    assert at == [999, 749, 499, 249]
    later = [now for now, _ in ddim(denoiser, torch.ones(1, 4, 2, 2), cond, cond, settings, 2)]
    assert later == at[2:]


@pytest.mark.parametrize("told", [{"_class_name": "LCMScheduler"}, {"_class_name": "TCDScheduler"}])
def test_a_distilled_model_is_taken_by_whoever_says_that_it_is_one(told: dict[str, str]) -> None:
    model = Checkpoint(Path("m"), "diffusers", {}, {}, {"modelspec.tags": "LCM"}, dict(told))
    with pytest.raises(ModelError, match=r"sampling lightning, hyper, turbo or lcm"):
        schedule_of(model, MODELS[2])
    assert torch.equal(schedule_of(model, MODELS[2], distilled=True).alphas, scaled_linear().alphas)
    flow = Checkpoint(Path("m"), "diffusers", {}, {}, {}, {"_class_name": "FlowMatchLCMScheduler"})
    with pytest.raises(ModelError, match="flow matching"):
        schedule_of(flow, MODELS[2], distilled=True)
