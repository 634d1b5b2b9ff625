"""Draw scenes and write captions for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

from bench.world.sprites import load_sprites
from trust_engine.demo.vocabulary import (
    BACKGROUNDS,
    IN,
    JOINS,
    JUDGED,
    OBJECTS,
    ON,
    PREFIXES,
    STYLES,
    UNSEEN,
    Scene,
    caption,
)

PIXELS = 128
COLOURS = {
    "white": (248, 248, 248),
    "red": (205, 60, 55),
    "blue": (70, 120, 215),
    "green": (85, 170, 95),
    "yellow": (245, 215, 90),
    "purple": (140, 95, 190),
    "black": (48, 48, 54),
    "pink": (245, 165, 195),
}
COLOUR_JITTER = 6
JITTER = 8  # pixels between an object's leftmost and rightmost place
PAIR_SHARE = 0.4
NAMED = 0.85  # share of captions that name the background, and of those that name the style


def random_scene(rng: np.random.Generator, objects: Sequence[str] = tuple(OBJECTS)) -> Scene:
    """Choose what a scene shows; two objects with probability 0.4."""
    count = 2 if rng.random() < PAIR_SHARE else 1
    names = rng.choice(len(objects), size=count, replace=False)
    return Scene(
        tuple(objects[i] for i in names),
        BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
        STYLES[rng.integers(len(STYLES))],
    )


def draw(scene: Scene, rng: np.random.Generator, lattice: int = 1) -> np.ndarray:
    """Draw a scene with random layout, (128, 128, 3) uint8.

    lattice: sizes and corners are multiples of this many pixels. An eight-fold autoencoder gives
    one sprite 64 different codes by its position within a cell; on a lattice of 8 it gives one.
    """
    return paint(scene, *layout(scene, rng, lattice))


def layout(
    scene: Scene, rng: np.random.Generator, lattice: int = 1
) -> tuple[list[tuple[int, int, int]], np.ndarray]:
    """Choose where a scene's objects stand, (size, x, y) each, and how its colour is shifted."""
    jitter = rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
    count = len(scene.objects)
    return [_place(i, count, rng, lattice) for i in range(count)], jitter


def paint(
    scene: Scene, places: Sequence[tuple[int, int, int]], jitter: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Paint a scene's objects at (size, x, y) on its background, shifted by `jitter` (r, g, b)."""
    colour = np.asarray(COLOURS[str(scene.background)], dtype=int) + jitter
    canvas = Image.new("RGB", (PIXELS, PIXELS), tuple(int(v) for v in colour.clip(0, 255)))
    for name, (size, x, y) in zip(scene.objects, places, strict=True):
        sprite = _sprite(str(scene.style), name).resize((size, size), Image.Resampling.LANCZOS)
        canvas.paste(sprite, (x, y), sprite)
    return np.asarray(canvas)


def _place(index: int, count: int, rng: np.random.Generator, lattice: int) -> tuple[int, int, int]:
    """Choose a size and a corner: one object big and central, two side by side.

    Two of 64 pixels fill the width, so a pair moves only up and down, one object like the other.
    """
    if count == 2:
        return 64, 64 * index, 28 + int(rng.integers(0, JITTER + 1)) if lattice == 1 else 32
    size = int(rng.choice((88, 104)))
    x, y = rng.integers(0, JITTER // lattice + 1, 2) * lattice - JITTER // 2
    if lattice > 1:  # fewer places to learn: only sideways
        y = JITTER // 2
    return size, (128 - size) // 2 + int(x), (128 - size) // 2 + int(y)


@cache
def _sprite(style: str, name: str) -> Image.Image:
    return Image.fromarray(load_all()[STYLES.index(style), JUDGED.index(name)])


@cache
def load_all() -> np.ndarray:
    """Read the sprite sheet once."""
    return load_sprites()


def describe(scene: Scene, rng: np.random.Generator) -> tuple[str, Scene]:
    """Write a random caption that is true of the scene; return it and what it claims.

    The object on the left is named first: with a random order a model cannot know who goes where.
    """
    claim = Scene(
        scene.objects,
        scene.background if rng.random() < NAMED else None,
        scene.style if rng.random() < NAMED else None,
    )
    words = [_word(name, rng) for name in scene.objects]
    text = caption(
        words,
        claim.background,
        claim.style,
        prefix=PREFIXES[rng.integers(len(PREFIXES))],
        join=JOINS[rng.integers(len(JOINS))],
        on=ON[rng.integers(len(ON))],
        in_style=IN[rng.integers(len(IN))],
    )
    return text, claim


def _word(name: str, rng: np.random.Generator) -> str:
    synonyms = (OBJECTS | UNSEEN)[name]
    if rng.random() < 0.5:
        return name
    return synonyms[rng.integers(len(synonyms))]
