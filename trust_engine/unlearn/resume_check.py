"""Whether a run can go on from a state that another one left."""

from __future__ import annotations

from collections.abc import Callable

from .. import __version__
from ..errors import SpecError
from ..models.attention import cross_attention_modules
from ..models.contract import Denoiser
from .run_state import RunState


def check_origin(kept: RunState, spec: str, identity: Callable[[], str]) -> None:
    """Raise SpecError for a state from which a run of this spec and model ends elsewhere.

    identity: of the model, `provenance.identity_of`, hashed only if the rest agrees.
    """
    if kept.spec != spec:
        raise SpecError(
            "the saved state belongs to another spec; start without it, or name another file"
        )
    if kept.engine != __version__:
        raise SpecError(
            f"the saved state is of TRUST Unlearn {kept.engine[:40]}, this is {__version__}; "
            "finish it with that version, or start without it"
        )
    if kept.base != identity():
        raise SpecError(
            "the saved state belongs to another model (its UNet, text encoder or picture size "
            "differ); start without it, or name another file"
        )


def check_extent(kept: RunState, most: int, denoiser: Denoiser) -> None:
    """Compare a state's recording, layers and offsets with the model's; raises SpecError.

    most: prompts that are recorded, or pictures drawn, in the stage that it was stopped in.
    """
    recording = kept.recording
    weights = dict(denoiser.module.named_parameters()) if kept.offsets else {}
    rows = sum(len(part.x) for part in recording.parts)
    sound = rows <= most
    if recording.over:
        layers = set(cross_attention_modules(denoiser))
        sound = len(recording.latents) == most
        sound = sound and (not recording.cond or set(recording.cond) == layers)
    for key, offset in kept.offsets.items():
        weight = weights.get(denoiser.parameter_name(key))
        sound = sound and weight is not None and tuple(weight.shape) == offset.shape
    if not sound:
        raise SpecError("the saved state does not fit this model's layers; start without it")
