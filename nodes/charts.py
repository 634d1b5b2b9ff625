"""Pictures of a run: curves of effect and harm, heat maps, and the way to the host's IMAGE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..trust_engine.pictures import FAINT, INK, MARGIN, PAPER, font, neuron_map

EFFECT, HARM, GRID = (192, 40, 60), (38, 132, 96), (226, 229, 234)
SIZE = (760, 340)
Curves = Mapping[str, Sequence[tuple[float, float]]]
"""For each piece that is trained, (effect, harm) after every step."""


def to_image(*pictures: Any) -> Tensor:
    """Turn PIL pictures of one size into the host's IMAGE (b, h, w, 3), 0..1."""
    arrays = [np.asarray(picture.convert("RGB"), dtype=np.float32) / 255 for picture in pictures]
    return torch.from_numpy(np.stack(arrays))


def from_image(image: Tensor) -> Any:
    """Turn one picture (h, w, 3), 0..1, into a PIL picture."""
    return Image.fromarray((image.float().cpu().clamp(0, 1) * 255).round().byte().numpy())


def mean_curve(curves: Curves, which: int) -> list[float]:
    """Average the pieces' effect (0) or harm (1), step by step, over those that got so far."""
    longest = max((len(points) for points in curves.values()), default=0)
    rows = [[p[i][which] for p in curves.values() if i < len(p)] for i in range(longest)]
    return [sum(row) / len(row) for row in rows]


def chart(title: str, curves: Curves, steps: int) -> Any:
    """Draw effect and harm against the step: their means bold, each layer's effect faint."""
    width, height = SIZE
    image = Image.new("RGB", SIZE, PAPER)
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = MARGIN + 30, MARGIN + 34, width - MARGIN, height - MARGIN - 18
    pen.text((MARGIN, MARGIN - 10), title, INK, font(17))
    highest = max([1.05, *mean_curve(curves, 0), *mean_curve(curves, 1)])

    def place(step: float, value: float) -> tuple[float, float]:
        x = left + (right - left) * step / max(1, steps - 1)
        return x, bottom - (bottom - top) * max(0.0, min(value, highest)) / highest

    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = place(0, value)
        pen.line([(left, y), (right, y)], GRID)
        pen.text((left - 6, y), f"{value:g}", FAINT, font(12), anchor="rm")
    for points in curves.values():
        _curve(pen, [place(i, p[0]) for i, p in enumerate(points)], (236, 205, 209), 1)
    for which, ink in ((1, HARM), (0, EFFECT)):
        line = [place(i, value) for i, value in enumerate(mean_curve(curves, which))]
        _curve(pen, line, ink, 3)
    note = "red: what the concept still does · green: change of what must stay"
    pen.text((left, height - MARGIN), note.replace("·", "-"), FAINT, font(12), anchor="ls")
    return image


def _curve(pen: Any, points: list[tuple[float, float]], ink: tuple, width: int) -> None:
    if len(points) > 1:
        pen.line(points, ink, width)


def summary_picture(
    title: str, curves: Curves, steps: int, neurons: Mapping[str, Mapping[str, float]]
) -> Any:
    """Put the chart above the map of the neurons."""
    parts = [chart(title, curves, steps)]
    if neurons:
        parts.append(neuron_map("Where the concept neurons sit", neurons))
    return stacked(parts)


def stacked(parts: Sequence[Any]) -> Any:
    """Put pictures below each other on paper."""
    width = max(part.width for part in parts)
    sheet = Image.new("RGB", (width, sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet


def side_by_side(parts: Sequence[Any]) -> Any:
    """Put pictures of one height beside each other on paper."""
    sheet = Image.new("RGB", (sum(part.width for part in parts), parts[0].height), PAPER)
    x = 0
    for part in parts:
        sheet.paste(part, (x, 0))
        x += part.width
    return sheet


def heated(picture: Any, heat: Tensor) -> Any:
    """Lay a heat map (h, w), any scale, over a picture."""
    low, high = float(heat.min()), float(heat.max())
    level = ((heat - low) / max(high - low, 1e-12)).float().cpu().numpy()
    mask = Image.fromarray((level * 255).astype(np.uint8)).resize(picture.size, Image.BICUBIC)
    share = np.asarray(mask, dtype=np.float32)[..., None] / 255
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32) * 0.6
    warm = np.array([255, 96, 32], dtype=np.float32)
    return Image.fromarray((grey * (1 - share) + warm * share).astype(np.uint8))
