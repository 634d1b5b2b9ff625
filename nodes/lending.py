"""A MODEL and a CLIP put together as the engine's LentModel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..trust_engine.demo.vocabulary import OBJECTS, STYLES
from ..trust_engine.errors import ModelError
from ..trust_engine.models import common_words
from ..trust_engine.models.contract import LentModel
from ..trust_engine.models.identity import probe
from .host import HostDenoiser, See, family_named, latent_side
from .text_encoder import HostEncoder
from .weights import Weights

FACTOR = 8  # pixels a latent
TEXTS = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "SDXL's refiner"}  # by width


@dataclass(frozen=True)
class Lent:
    """What is lent, and the host's own denoiser, which watches and previews."""

    model: LentModel
    host: HostDenoiser
    encoder: HostEncoder


def lend(
    model: Any,
    clip: Any,
    resolution: int = 0,
    whole: bool = False,
    see: See | None = None,
    rows: int = 0,
    gradients: bool = True,
) -> Lent:
    """Lend a MODEL; whole: with a private UNet, through which gradients may pass.

    resolution: side of the picture in pixels, 0 for the one that the model was trained at; rows:
    how many a pass of the private UNet has at most, two a prompt; 0 for any number.
    """
    host = HostDenoiser(model, see)
    check_clip(clip, host.weights)
    side = resolution // FACTOR or latent_side(host.weights, host.schedule.prediction)
    size = (side * FACTOR, side * FACTOR)
    encoder = HostEncoder(clip, model, size, host.device)
    denoiser: Any = host
    if whole:
        from .private_unet import private_denoiser

        denoiser = private_denoiser(model, gradients=gradients)
    things, styles = words_of(host.weights)
    # What the model predicts hangs on more than weights: on patches, wrappers, other nodes' hooks.
    lent = LentModel(
        denoiser, encoder, (side, side), things, styles, batch=rows // 2 if whole else 0,
        more=lambda cond: probe(host, cond, (side, side)),
    )  # fmt: skip
    return Lent(lent, host, encoder)


def check_clip(clip: Any, weights: Weights) -> None:
    """Raise ModelError unless a CLIP writes what a MODEL's cross-attention reads."""
    if clip is None:
        raise ModelError("there is no CLIP: the checkpoint has no text encoder; connect one")
    widths = (weights.shapes[key][1] for key in weights.projections if key.endswith("k.weight"))
    reads = next(widths, 0)
    with torch.inference_mode():  # the host loads and moves its weights in this mode only
        context, _ = clip.encode_from_tokens(clip.tokenize(""), return_pooled=True)
    writes = int(context.shape[-1])
    if reads and writes != reads:
        asked, given = (TEXTS.get(width, "another family") for width in (reads, writes))
        raise ModelError(
            f"the CLIP does not belong to the model: the model reads texts of {asked} ({reads} "
            f"numbers a token), the CLIP writes those of {given} ({writes}); connect the CLIP of "
            "the model's own checkpoint"
        )


def words_of(weights: Weights) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return things and styles that a model may be expected to know."""
    if (family_named(weights) or "").startswith("demo"):
        return tuple(OBJECTS), tuple(STYLES)
    return common_words.THINGS, common_words.STYLES
