"""What a checkpoint's UNet predicts, and on which noise schedule: read from the file."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

from ..errors import ModelError
from .checkpoint import Checkpoint
from .contract import NoiseSchedule, Prediction, Spacing, scaled_linear
from .families import ModelFamily

LEAST = 4.8973451890853435e-08  # of the signal's share at the end: zero has no noise level
_TELLS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_WORDS: dict[str, Prediction] = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v"}
# Schedulers of diffusers that step through Stable Diffusion's own 1000 noise levels.
_DISCRETE = {
    "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler",
    "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "SASolverScheduler", "UniPCMultistepScheduler",
}  # fmt: skip
_FEW_STEPS = {
    "LCMScheduler": "an LCM", "TCDScheduler": "Hyper-SD or another model distilled by TCD",
    "CMStochasticIterativeScheduler": "a consistency model",
}  # fmt: skip
_DISTILLED = re.compile(r"\b(lcm|turbo|lightning|hyper|dmd2?|distilled)\b", re.IGNORECASE)
_SAYS = ("modelspec.architecture", "modelspec.tags", "modelspec.sampler", "modelspec.usage_hint")
_TRUE = {"true", "1", "yes"}
_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max")


def schedule_of(model: Checkpoint, family: ModelFamily, distilled: bool = False) -> NoiseSchedule:
    """Find the schedule; raises ModelError for one that is not Stable Diffusion's.

    distilled: whoever asks knows that the model draws in a few steps, and samples it so.
    """
    edm = [name for name in _EDM if name in model.rest]
    if edm:
        raise ModelError(
            f"{model.path}: a model on the EDM schedule ({edm[0]}: Playground 2.5 or CosXL), "
            "not supported"
        )
    _check_class(model, distilled)
    if not distilled:
        _check_distilled(model)
    _check_betas(model)
    schedule = replace(scaled_linear(_prediction(model, family)), spacing=_spacing(model))
    said = model.metadata.get("ss_zero_terminal_snr", "").lower() in _TRUE
    rescaled = "ztsnr" in model.rest or model.scheduler.get("rescale_betas_zero_snr") or said
    return zero_terminal(schedule) if rescaled else schedule


def _check_class(model: Checkpoint, distilled: bool) -> None:
    """Refuse a folder's scheduler that steps otherwise than Stable Diffusion's do, by its name."""
    name = model.scheduler.get("_class_name")
    if name is None or name in _DISCRETE:
        return
    if name in _FEW_STEPS:
        if distilled:
            return
        raise ModelError(_few_steps(model, _FEW_STEPS[name], f"its scheduler is {name}"))
    text = str(name)
    what = "the EDM schedule" if "EDM" in text else "a schedule that is not Stable Diffusion's"
    what = "flow matching" if "Flow" in text else what
    raise ModelError(
        f"{model.path}: its scheduler is {text[:60]}, {what}, which is not supported; take a model "
        "of Stable Diffusion's own schedule"
    )


def _check_distilled(model: Checkpoint) -> None:
    """Refuse a file that says that it draws in a few steps; what it is called says nothing."""
    for key in _SAYS:
        found = _DISTILLED.search(model.metadata.get(key, ""))
        if found:
            raise ModelError(_few_steps(model, f"a {found[0]} model", f"its {key} says so"))


def _few_steps(model: Checkpoint, what: str, why: str) -> str:
    return (
        f"{model.path}: {what} ({why}), which draws in a few steps without guidance; say how it is "
        "sampled (sampling lightning, hyper, turbo or lcm), or unlearn on the model that it was "
        "distilled from"
    )


def _spacing(model: Checkpoint) -> Spacing:
    said = model.scheduler.get("timestep_spacing", "leading")
    for known in get_args(Spacing):
        if said == known:
            spacing: Spacing = known
            return spacing
    raise ModelError(
        f"{model.path}: its scheduler's timestep_spacing is {str(said)[:40]!r}; "
        f"{', '.join(get_args(Spacing))} are supported"
    )


def _check_betas(model: Checkpoint) -> None:
    usual = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "trained_betas": None,
        "use_flow_sigmas": False,
    }
    for name, value in usual.items():
        if model.scheduler.get(name, value) != value:
            raise ModelError(
                f"{model.path}: its scheduler's {name} is {model.scheduler[name]!r}, "
                f"Stable Diffusion's is {value!r}; not supported"
            )


def _prediction(model: Checkpoint, family: ModelFamily) -> Prediction:
    metadata = model.metadata
    said = (
        model.scheduler.get("prediction_type")
        or metadata.get("modelspec.predict_key")
        or metadata.get("modelspec.prediction_type")
    )
    if said is not None:
        if not isinstance(said, str) or said.lower() not in _WORDS:
            raise ModelError(f"{model.path}: its UNet predicts {said!r}; eps and v are supported")
        return _WORDS[str(said).lower()]
    if "v_pred" in model.rest or metadata.get("ss_v_parameterization", "").lower() in _TRUE:
        return "v"
    if family.unet.name == "sd2" and _TELLS in model.unet:
        # SD 2.x says nothing of it in the file; this bias spreads wider where v is predicted. The
        # hosts go by the same figure.
        spread = float(model.unet[_TELLS].read().float().std(unbiased=False))
        return "v" if spread > 0.09 else "eps"
    return "eps"


def zero_terminal(schedule: NoiseSchedule) -> NoiseSchedule:
    """Rescale a schedule to end without signal (Lin et al. 2023, arXiv 2305.08891, algorithm 1)."""
    root = schedule.alphas.double().sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return replace(schedule, alphas=root.square().clamp(min=LEAST).float())
