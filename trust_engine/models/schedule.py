"""What a checkpoint's UNet predicts, and on which noise schedule: read from the file."""

from __future__ import annotations

from dataclasses import replace

from ..errors import ModelError
from .checkpoint import Checkpoint
from .denoiser import NoiseSchedule, Prediction, scaled_linear
from .families import ModelFamily

LEAST = 4.8973451890853435e-08  # of the signal's share at the end: zero has no noise level
_TELLS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_WORDS: dict[str, Prediction] = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v"}
_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max")


def schedule_of(model: Checkpoint, family: ModelFamily) -> NoiseSchedule:
    """Find the schedule; raises ModelError for one that is not Stable Diffusion's."""
    edm = [name for name in _EDM if name in model.rest]
    if edm:
        raise ModelError(
            f"{model.path}: a model on the EDM schedule ({edm[0]}: Playground 2.5 or CosXL), "
            "not supported"
        )
    _check_betas(model)
    schedule = scaled_linear(_prediction(model, family))
    rescaled = "ztsnr" in model.rest or model.scheduler.get("rescale_betas_zero_snr")
    return zero_terminal(schedule) if rescaled else schedule


def _check_betas(model: Checkpoint) -> None:
    usual = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
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
        if str(said).lower() not in _WORDS:
            raise ModelError(f"{model.path}: its UNet predicts {said!r}; eps and v are supported")
        return _WORDS[str(said).lower()]
    if "v_pred" in model.rest:
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
