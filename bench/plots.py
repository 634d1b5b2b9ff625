"""Draw what bench.engine measured: quality against budget, xi and lambda.

python -m bench.plots --out docs/images
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from bench.engine import ABLATED, STORE, mean
from bench.measure import relative
from trust_engine.frontend.pictures import FAINT, INK, MARGIN, PAPER, font

INKS = (
    (192, 40, 60), (217, 130, 43), (38, 132, 96), (62, 104, 190), (128, 90, 170), (110, 120, 130),
    (30, 160, 190),
)  # fmt: skip
GRID = (226, 229, 234)
SIZE = (520, 330)
AXES: dict[str, tuple[tuple[str, str], ...]] = {
    "budget": (
        ("0.3 %", "budget 0.003"), ("1 %", "budget 0.01"), ("3 %", "default"),
        ("10 %", "budget 0.1"), ("all", "all entries"),
    ),
    "lambda": (("0", "neither"), ("0.01", "lambda 0.01"), ("0.1", "default"), ("1", "lambda 1")),
    "xi": (
        ("0", "bounded, xi 0"), ("1", "bounded"), ("2", "bounded, xi 2"), ("3", "bounded, xi 3"),
    ),
}  # fmt: skip


def series(cells: Mapping[str, Any], concept: str, variants: Sequence[str]) -> dict[str, list]:
    """Collect each figure's mean over seeds, one value a variant; None where nothing is known.

    Over the seeds that all of them were measured with: others would make a slope of their own.
    """
    found: dict[str, list] = {}
    known = [[k for k in cells if k.startswith(f"{v}/{concept}/")] for v in variants]
    seeds = [{key.rsplit("/", 1)[1] for key in keys} for keys in known if keys]
    shared = set.intersection(*seeds) if seeds else set()
    for i, keys in enumerate(known):
        keys = [key for key in keys if key.rsplit("/", 1)[1] in shared]
        rows = [
            relative(
                cells[k]["figures"], cells[f"untouched/{concept}/{k.rsplit('/', 1)[1]}"]["figures"]
            )
            for k in keys
        ]
        for name in rows[0] if rows else ():
            line = found.setdefault(name, [None] * len(variants))
            line[i] = mean([row[name] for row in rows])
    return found


def drawn(title: str, labels: Sequence[str], lines: Mapping[str, Sequence[Any]]) -> Image.Image:
    """Draw lines over evenly spaced labels, values 0..1; a longer axis where they are above."""
    width, height = SIZE
    image = Image.new("RGB", SIZE, PAPER)
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = MARGIN + 34, MARGIN + 24, width - 150, height - MARGIN - 18
    known = [v for line in lines.values() for v in line if v is not None]
    low, high = min([0.8, *known]), max([1.0, *known])
    low = 0.1 * int(10 * low)

    def place(i: int, value: float) -> tuple[float, float]:
        x = left + (right - left) * i / max(1, len(labels) - 1)
        return x, bottom - (bottom - top) * (value - low) / (high - low)

    pen.text((MARGIN, MARGIN - 10), title, INK, font(16))
    value = low
    while value < high + 1e-6:
        _, y = place(0, value)
        pen.line([(left, y), (right, y)], GRID)
        pen.text((left - 8, y), f"{value:.1f}", FAINT, font(12), anchor="rm")
        value += 0.1
    for i, label in enumerate(labels):
        pen.text((place(i, low)[0], bottom + 8), label, FAINT, font(12), anchor="ma")
    for k, (name, line) in enumerate(lines.items()):
        ink = INKS[k % len(INKS)]
        points = [place(i, v) for i, v in enumerate(line) if v is not None]
        if len(points) > 1:
            pen.line(points, ink, 3)
        for x, y in points:
            pen.ellipse([x - 4, y - 4, x + 4, y + 4], fill=ink)
        pen.text((right + 16, top + 20 * k), name.replace("_", " "), ink, font(13))
    return image


def main() -> None:
    """Draw every axis of which at least two values were measured."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    cells = json.loads(STORE.read_text())
    args.out.mkdir(parents=True, exist_ok=True)
    for axis, ticks in AXES.items():
        labels, variants = zip(*ticks, strict=True)
        for concept in ABLATED:
            lines = series(cells, concept, variants)
            if any(sum(v is not None for v in line) > 1 for line in lines.values()):
                path = args.out / f"engine-{axis}-{concept.replace('+', '-')}.png"
                drawn(f"{concept}: {axis}", labels, lines).save(path)
                print(path)


if __name__ == "__main__":
    main()
