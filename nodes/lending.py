"""A MODEL and a CLIP put together as the engine's LentModel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..trust_engine import everyday
from ..trust_engine.demo.vocabulary import OBJECTS, STYLES
from ..trust_engine.memory import TRAINED
from ..trust_engine.spec import UnlearnSpec
from ..trust_engine.unlearn import LentModel
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


def needs(lent: Lent, spec: UnlearnSpec, kept: int, total: int, whole: bool) -> str:
    """Say what a run will take before it starts; kept: prompts recorded, total: units of work."""
    if spec.robust:
        every = sum(torch.Size(shape).numel() for shape in lent.host.weights.shapes.values())
        room = 4 * TRAINED * every / 2**30
        return f"{total} units of work, {kept} pictures, {room:.1f} GB for a private UNet"
    shapes = lent.host.weights.shapes
    trained = [torch.Size(shapes[key]).numel() for key in lent.host.weights.projections]
    widths = [shapes[key][1] for key in lent.host.weights.projections if key.endswith("q.weight")]
    states = 2 * kept * 8 * 24 * 2 * sum(widths)
    one = 4 * max(trained, default=0) * 3 * 8
    text = f"{total} units of work, about {states / 2**20:.0f} MB of recorded states"
    if whole:
        copy = 4 * sum(torch.Size(shape).numel() for shape in shapes.values())
        return text + f", {(copy + 4 * 6 * sum(trained)) / 2**30:.1f} GB for a private UNet"
    return text + f" and {one / 2**20:.0f} MB at a time for training"
