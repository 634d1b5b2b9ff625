"""A model as a host or a loader lends it to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .conditioning import Conditioning, TextEncoder
from .denoiser import Denoiser

Score = Callable[[Tensor, Sequence[str]], Tensor]
"""Latents x0 (b, 4, h, w) and prompts -> how well each decoded picture shows its prompt, (b,)."""


@dataclass(frozen=True)
class LentModel:
    """What a host lends: the UNet, text encoding and latent size (h, w).

    vocabulary, styles: words the model knows, from which the engine proposes what to preserve;
    score: how well latents show prompts, for the saliency source "clip"; batch: prompts to record
    at once, 0: as many as take about a gigabyte; more: what predictions depend on besides the
    weights of `denoiser.module`, hashed, for a UNet that hooks and patches change; applied: diffs
    that are in its weights already, as its file's record tells them.
    """

    denoiser: Denoiser
    encoder: TextEncoder
    latent_size: tuple[int, int]
    vocabulary: Sequence[str] = ()
    styles: Sequence[str] = ()
    score: Score | None = None
    batch: int = 0
    more: Callable[[Conditioning], str] | None = None
    applied: Sequence[Mapping[str, Any]] = ()
