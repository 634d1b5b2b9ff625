"""A MODEL and a CLIP put together as the engine's LentModel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..trust_engine.demo.vocabulary import OBJECTS, STYLES
from ..trust_engine.models import everyday
from ..trust_engine.models.lent import LentModel
from .host import HostDenoiser, See, family_named, latent_side
from .text import HostEncoder
from .weights import Weights

FACTOR = 8  # pixels a latent


@dataclass(frozen=True)
class Lent:
    """What is lent, and the host's own denoiser, which watches and previews."""

    model: LentModel
    host: HostDenoiser
    encoder: HostEncoder


def lend(
    model: Any, clip: Any, resolution: int = 0, whole: bool = False, see: See | None = None
) -> Lent:
    """Lend a MODEL; whole: with a private UNet, through which gradients pass.

    resolution: side of the picture in pixels, 0 for the one that the model was trained at.
    """
    host = HostDenoiser(model, see)
    side = resolution // FACTOR or latent_side(host.weights, host.schedule.prediction)
    size = (side * FACTOR, side * FACTOR)
    encoder = HostEncoder(clip, model, size, host.device)
    denoiser: Any = host
    if whole:
        from .private import private_denoiser

        denoiser = private_denoiser(model)
    things, styles = words_of(host.weights)
    return Lent(LentModel(denoiser, encoder, (side, side), things, styles), host, encoder)


def words_of(weights: Weights) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return things and styles that a model may be expected to know."""
    if family_named(weights) == "demo":
        return tuple(OBJECTS), tuple(STYLES)
    return everyday.THINGS, everyday.STYLES
