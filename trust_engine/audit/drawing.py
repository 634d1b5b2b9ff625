"""Draw pictures step by step: generators that yield UNet passes and return what was drawn."""

from __future__ import annotations

import base64
import io
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..distributed import SINGLE, Workers
from ..models.contract import Conditioning
from ..models.load import LoadedModel
from ..models.sampler import SamplerSettings, initial_noise, sample

Result = TypeVar("Result")
Work = Generator[int, None, Result]
"""A piece of work: yields UNet passes as they are made, returns its result."""

THUMBNAIL = 160  # pixels of a report's picture, at most


@dataclass(frozen=True)
class Canvas:
    """Where drawing starts: latents (b, 4, h, w) of pictures, and how far they are redrawn."""

    latents: Tensor
    strength: float


def paint(
    model: LoadedModel,
    cond: Conditioning,
    seeds: Sequence[int],
    settings: SamplerSettings,
    negative: Conditioning | None = None,
    canvas: Canvas | None = None,
    team: Workers = SINGLE,
) -> Work[Tensor]:
    """Draw one picture for each row of `cond`; returns latents (b, 4, h, w) on the CPU.

    negative: what guidance leads away from, one row or one a picture (None: the empty prompt);
    team: processes that take turns at the batches, and all get all pictures.
    """
    uncond = model.encoder.encode([""]) if negative is None else negative
    skip = 0 if canvas is None else skipped(settings, canvas.strength)
    parts = []
    for number, start in enumerate(range(0, len(seeds), model.batch)):
        rows = slice(start, start + model.batch)
        mine = list(seeds[rows])
        if not team.mine(number):
            yield passes_of(settings, len(mine), canvas.strength if canvas else 1.0)
            continue
        x = initial_noise(mine, model.latent_size)
        if canvas is not None:
            grid = settings.grid(model.denoiser)
            t = torch.full((len(mine),), grid[skip])
            x = model.denoiser.schedule.noised(canvas.latents[rows].cpu(), t, x)
        away = uncond if len(uncond) == 1 else uncond.select(rows)
        drawn = sample(model.denoiser, x, cond.select(rows), away, settings, mine, skip)
        for _, step in drawn:
            x = step
            yield len(mine) * settings.passes(1) // settings.steps
        parts.append(x.cpu())
    parts = team.interleave(parts)
    return torch.cat(parts) if parts else torch.empty(0, 4, *model.latent_size)


def skipped(settings: SamplerSettings, strength: float) -> int:
    """Count the steps that image-to-image leaves out; at least one is made."""
    return settings.steps - min(settings.steps, max(1, round(settings.steps * strength)))


def passes_of(settings: SamplerSettings, images: int, strength: float = 1.0) -> int:
    """Count the UNet passes that `paint` makes."""
    return replace(settings, steps=settings.steps - skipped(settings, strength)).passes(images)


def to_pixels(pictures: Tensor) -> Any:
    """Turn (b, 3, h, w) in -1..1 into a (b, h, w, 3) uint8 array."""
    scaled = pictures.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


def thumbnail(picture: Tensor) -> str:
    """Shrink one picture (3, h, w) in -1..1 to a base64 JPEG."""
    pixels = to_pixels(picture[None])[0]
    image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode()
