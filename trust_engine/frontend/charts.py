"""Curves of a run's effect and harm, and pictures put together. Pillow only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from ..unlearn.run import Unlearning
from .pictures import FAINT, INK, MARGIN, PAPER, direction_map, font, neuron_map

EFFECT, HARM, LAYER, GRID = (192, 40, 60), (38, 132, 96), (236, 205, 209), (226, 229, 234)
SIZE = (760, 340)
Curves = Mapping[str, Sequence[tuple[float, float]]]
"""For each piece that is trained, (effect, harm) after every step."""


def mean_curve(curves: Curves, which: int) -> list[float]:
    """Average the pieces' effect (0) or harm (1), step by step, over those that got so far."""
    longest = max((len(points) for points in curves.values()), default=0)
    rows = [[p[i][which] for p in curves.values() if i < len(p)] for i in range(longest)]
    return [sum(row) / len(row) for row in rows]


def chart(title: str, curves: Curves, steps: int) -> Image.Image:
    """Draw effect and harm against the step: their means bold, each piece's effect faint."""
    width, height = SIZE
    image = Image.new("RGB", SIZE, PAPER)
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = MARGIN + 30, MARGIN + 34, width - MARGIN, height - MARGIN - 18
    pen.text((MARGIN, MARGIN - 10), title, INK, font(17))
    means = [mean_curve(curves, which) for which in (0, 1)]
    highest = max([1.05, *means[0], *means[1]])

    def place(step: float, value: float) -> tuple[float, float]:
        x = left + (right - left) * step / max(1, steps - 1)
        return x, bottom - (bottom - top) * max(0.0, min(value, highest)) / highest

    def line(values: Sequence[float], ink: tuple[int, int, int], thick: int) -> None:
        if len(values) > 1:
            pen.line([place(i, value) for i, value in enumerate(values)], ink, thick)

    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = place(0, value)
        pen.line([(left, y), (right, y)], GRID)
        pen.text((left - 6, y), f"{value:g}", FAINT, font(12), anchor="rm")
    for points in curves.values():
        line([effect for effect, _ in points], LAYER, 1)
    line(means[1], HARM, 3)
    line(means[0], EFFECT, 3)
    note = "red: what the concept still does - green: change of what must stay"
    pen.text((left, height - MARGIN), note, FAINT, font(12), anchor="ls")
    return image


def stacked(parts: Sequence[Image.Image]) -> Image.Image:
    """Put pictures below each other on paper."""
    width = max(part.width for part in parts)
    sheet = Image.new("RGB", (width, sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet


def side_by_side(parts: Sequence[Image.Image]) -> Image.Image:
    """Put pictures of one height beside each other on paper."""
    sheet = Image.new("RGB", (sum(part.width for part in parts), parts[0].height), PAPER)
    x = 0
    for part in parts:
        sheet.paste(part, (x, 0))
        x += part.width
    return sheet


def where(run: Unlearning) -> Image.Image | None:
    """Map what a run has changed: where directions were taken out, and its concept neurons."""
    maps, scrubbed = [], run.results.scrubbed
    if scrubbed is not None:
        taken = {key: offset.rank for key, offset in scrubbed.offsets.items()}
        maps.append(direction_map("Where directions were taken out", taken))
    if run.neurons:
        maps.append(neuron_map("Where the concept neurons sit", run.neurons))
    return stacked(maps) if maps else None
