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
PAIR_SHARE = 0.4


def random_scene(rng: np.random.Generator, objects: Sequence[str] = tuple(OBJECTS)) -> Scene:
    """Choose what a scene shows; two objects with probability 0.4."""
    count = 2 if rng.random() < PAIR_SHARE else 1
    names = rng.choice(len(objects), size=count, replace=False)
    return Scene(
        tuple(objects[i] for i in names),
        BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
        STYLES[rng.integers(len(STYLES))],
    )


def draw(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene with random layout, (128, 128, 3) uint8."""
    jitter = rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
    colour = np.asarray(COLOURS[str(scene.background)], dtype=int) + jitter
    canvas = Image.new("RGB", (PIXELS, PIXELS), tuple(int(v) for v in colour.clip(0, 255)))
    for index, name in enumerate(scene.objects):
        size, x, y = _place(index, len(scene.objects), rng)
        sprite = _sprite(str(scene.style), name).resize((size, size), Image.Resampling.LANCZOS)
        canvas.paste(sprite, (x - size // 2, y - size // 2), sprite)
    return np.asarray(canvas)


def _place(index: int, count: int, rng: np.random.Generator) -> tuple[int, int, int]:
    if count == 1:
        return int(rng.integers(72, 97)), int(rng.integers(56, 73)), int(rng.integers(56, 73))
    x = 34 if index == 0 else 94
    return int(rng.integers(52, 63)), x + int(rng.integers(-3, 4)), int(rng.integers(52, 77))


@cache
def _sprite(style: str, name: str) -> Image.Image:
    return Image.fromarray(load_all()[STYLES.index(style), JUDGED.index(name)])


@cache
def load_all() -> np.ndarray:
    """Read the sprite sheet once."""
    return load_sprites()


def describe(scene: Scene, rng: np.random.Generator) -> tuple[str, Scene]:
    """Write a random caption that is true of the scene; return it and what it claims."""
    claim = Scene(
        scene.objects,
        scene.background if rng.random() < 0.7 else None,
        scene.style if rng.random() < 0.7 else None,
    )
    words = [_word(name, rng) for name in rng.permutation(np.array(scene.objects, dtype=object))]
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
