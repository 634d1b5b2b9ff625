"""Pictures that explain: before/after sheets and the map of concept neurons. Pillow only."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, FAINT, PAPER = (32, 33, 36), (118, 122, 128), (255, 255, 255)
LOW, HIGH = np.array([236, 240, 247]), np.array([192, 40, 60])
MARGIN, GAP, LABEL = 24, 6, 22
CELL = 118
OLD_FONTS = ["DejaVuSans.ttf", "arial.ttf", "Arial.ttf"]
"""Font files for an old Pillow; a host's door may put its own first."""
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
NEURON_NOTES = (
    "share of entries that are concept neurons at the end of training",
    "in brackets: how many of the first ones are still among them",
)


def font(size: int) -> Any:
    """Return Pillow's own font; before 10.1 it has one size, too small, and others go first."""
    try:
        return ImageFont.load_default(size)
    except TypeError:
        for file in OLD_FONTS:
            with contextlib.suppress(OSError):
                return ImageFont.truetype(file, size)
        return ImageFont.load_default()


def png(image: Image.Image) -> bytes:
    """Encode as PNG."""
    return encoded(image, ".png")


def encoded(image: Image.Image, ending: str) -> bytes:
    """Encode as the ending of a file's name says; PNG if it has none that is known."""
    buffer = io.BytesIO()
    image.save(buffer, FORMATS.get(ending.lower(), "PNG"), quality=95)
    return buffer.getvalue()


def contact_sheet(
    title: str, rows: Sequence[tuple[str, np.ndarray]], columns: Sequence[str]
) -> Image.Image:
    """Lay out rows of pictures (n, h, w, 3) uint8 under column labels."""
    left = MARGIN + 8 + max(int(font(15).getlength(label)) for label, _ in rows)
    tile = rows[0][1].shape[1]
    width = left + MARGIN + len(columns) * (tile + GAP)
    top = MARGIN + 30 + LABEL
    sheet = Image.new("RGB", (width, top + len(rows) * (tile + GAP) + MARGIN - GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 6), title, INK, font(20))
    for i, name in enumerate(columns):
        middle = left + i * (tile + GAP) + tile / 2
        pen.text((middle, top - 6), name, FAINT, font(14), anchor="ms")
    for j, (label, pictures) in enumerate(rows):
        y = top + j * (tile + GAP)
        pen.text((left - 10, y + tile / 2), label, INK, font(15), anchor="rm")
        for i, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (left + i * (tile + GAP), y))
    return sheet


def neuron_map(
    title: str,
    neurons: Mapping[str, Mapping[str, float]],
    notes: tuple[str, str] = NEURON_NOTES,
) -> Image.Image:
    """Show where concept neurons sit: layer x q/k/v, share of entries, and how they moved."""
    layers = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in neurons))
    left, top, cell = MARGIN + 190, MARGIN + 88, 44
    width = left + 3 * (CELL + GAP) + MARGIN + 210
    image = Image.new("RGB", (width, top + len(layers) * (cell + GAP) + MARGIN), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, MARGIN - 6), title, INK, font(20))
    pen.text((MARGIN, MARGIN + 24), notes[0], FAINT, font(13))
    pen.text((MARGIN, MARGIN + 42), notes[1], FAINT, font(13))
    shares = {k: n["last"] / n["entries"] for k, n in neurons.items()}
    most = max(max(shares.values()), 1e-9)
    for i, letter in enumerate("qkv"):
        middle = left + i * (CELL + GAP) + CELL / 2
        pen.text((middle, top - 8), f"to_{letter}", INK, font(15), anchor="ms")
    for j, layer in enumerate(layers):
        y = top + j * (cell + GAP)
        pen.text((left - 12, y + cell / 2), short_name(layer), INK, font(14), anchor="rm")
        for i, letter in enumerate("qkv"):
            name = f"{layer}.to_{letter}"
            x, heat = left + i * (CELL + GAP), (shares[name] / most) ** 0.7
            fill = tuple(int(c) for c in LOW + (HIGH - LOW) * heat)
            pen.rounded_rectangle((x, y, x + CELL, y + cell), 5, fill)
            ink = PAPER if heat > 0.5 else INK
            text = f"{shares[name]:.1%}  ({stayed(neurons[name]):.0%})"
            pen.text((x + CELL / 2, y + cell / 2), text, ink, font(14), anchor="mm")
        total = sum(int(neurons[f"{layer}.to_{c}"]["last"]) for c in "qkv")
        x = left + 3 * (CELL + GAP) + 10
        pen.text((x, y + cell / 2), f"{total:,} neurons", FAINT, font(14), anchor="lm")
    return image


def direction_map(title: str, layers: Mapping[str, int]) -> Image.Image:
    """Show where directions were taken out: how many of each stage of the UNet, by layer."""
    stages: dict[str, list[int]] = {}
    for key, count in layers.items():
        block, index, *_ = key.split(".")
        inner = f" {index}" if block.endswith("_blocks") else ""
        stages.setdefault(block.partition("_")[0] + inner, []).append(count)
    left, top, row, longest = MARGIN + 80, MARGIN + 56, 22, 360
    image = Image.new("RGB", (left + longest + 240, top + len(stages) * row + MARGIN), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, MARGIN - 6), title, INK, font(20))
    pen.text((MARGIN, MARGIN + 24), "how many directions of layers' inputs", FAINT, font(13))
    most = max(map(sum, stages.values()), default=1)
    for i, (stage, counts) in enumerate(stages.items()):
        y, length = top + i * row, max(2, round(longest * sum(counts) / most))
        pen.text((left - 12, y + row / 2), stage, INK, font(13), anchor="rm")
        pen.rectangle((left, y + 3, left + length, y + row - 3), tuple(int(c) for c in HIGH))
        text = f"{sum(counts):,} in {len(counts)} layer{'s' if len(counts) > 1 else ''}"
        pen.text((left + length + 8, y + row / 2), text, FAINT, font(13), anchor="lm")
    return image


def stayed(neuron: Mapping[str, float]) -> float:
    """Return the share of the first mask's neurons that are in the last one, from their overlap."""
    first, last, jaccard = neuron["first"], neuron["last"], neuron["overlap"]
    both = jaccard * (first + last) / (1 + jaccard)
    return both / first if first else 0.0


def short_name(layer: str) -> str:
    """Shorten `input_blocks.1.1.transformer_blocks.0.attn2` to `input 1`."""
    block, index, *rest = layer.split(".")
    depth = rest[rest.index("transformer_blocks") + 1]
    name = block.removesuffix("_blocks").removesuffix("_block")
    label = name if name == "middle" else f"{name} {index}"
    return label if depth == "0" else f"{label}, block {depth}"
