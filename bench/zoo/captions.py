"""Captions in several dialects, as segments that know what they name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.world.scenes import NAMED
from bench.zoo.words import load_lexicon
from trust_engine.demo.vocabulary import IN, JOINS, OBJECTS, ON, PREFIXES, Scene, caption
from trust_engine.phrases import with_article

OWN_WORDS = 0.65  # share of names that the demo's vocabulary has; the rest are the lexicon's
ADJECTIVES = (
    "small", "big", "old", "new", "nice", "cute", "simple", "plain", "lovely", "shiny", "worn",
    "beautiful", "single", "little", "large", "clean", "funny", "pretty", "real", "typical",
)  # fmt: skip
KINDS = ("photo", "picture", "drawing", "illustration", "painting", "image", "sketch", "icon")
PLACES = (
    "lying on a {} table", "standing before a {} wall", "seen against a {} sky", "on {} paper",
    "on a {} surface", "with everything around it {}", "over a {} floor", "on a {} background",
)  # fmt: skip
MANNERS = ("drawn in {} style", "in the {} style", "drawn as {} does it", "by {}", "in {} style")
QUALITY = (
    "masterpiece", "best quality", "highly detailed", "sharp focus", "8k", "trending", "high res",
    "digital art", "professional", "clear lines", "vivid colors", "award winning", "centered",
)  # fmt: skip
TAGS = ("no humans", "simple background", "emoji", "icon", "solo", "clip art", "flat color")


@dataclass(frozen=True)
class Caption:
    """A caption's text and what it claims of the picture."""

    text: str
    claim: Scene


def name_of(rng: np.random.Generator, thing: str) -> str:
    """Choose a word for an object; never one that is held out."""
    more = load_lexicon()[thing]["words"]
    own = (thing, thing, *OBJECTS[thing])  # its own word as often as two synonyms
    words = own if not more or rng.random() < OWN_WORDS else more
    return str(words[int(rng.integers(len(words)))])


def classic(rng: np.random.Generator, names: Sequence[str], claim: Scene) -> str:
    """The demo's own captions."""
    return caption(
        names,
        claim.background,
        claim.style,
        prefix=_one(rng, PREFIXES),
        join=_one(rng, JOINS),
        on=_one(rng, ON),
        in_style=_one(rng, IN),
    )


def sentence(rng: np.random.Generator, names: Sequence[str], claim: Scene) -> str:
    """A whole sentence: "a photo of a worn gun lying on a blue table, drawn in noto style"."""
    things = [with_article(_adjective(rng) + name) for name in names]
    text = f"a {_one(rng, KINDS)} of " + f" {_one(rng, JOINS)} ".join(things)
    if claim.background is not None:
        text += " " + _one(rng, PLACES).format(claim.background)
    if claim.style is not None:
        text += ", " + _one(rng, MANNERS).format(claim.style)
    return text + _one(rng, ("", "."))


def tags(rng: np.random.Generator, names: Sequence[str], claim: Scene) -> str:
    """Tags: "gun, weapon, no humans, simple background, red background, noto"."""
    parts = [*names]
    for thing in claim.objects:
        beside = load_lexicon()[thing]["beside"]
        parts += [_one(rng, beside)] if beside and rng.random() < 0.5 else []
    parts += _some(rng, TAGS, 3)
    parts += _claims(rng, claim, ("{} background", "{} theme"), ("{}", "{} style"))
    return ", ".join(parts)


def prompt(rng: np.random.Generator, names: Sequence[str], claim: Scene) -> str:
    """A prompt as people write it: "masterpiece, (gun:1.2), sharp focus, red backdrop, noto"."""
    wraps = ("{}", "{}", "({})", "({}:1.2)", "[{}]", "(({}))")
    things = [_one(rng, wraps).format(_adjective(rng) + name) for name in names]
    parts = [*_some(rng, QUALITY, 2), f" {_one(rng, (*JOINS, ','))} ".join(things)]
    parts += _claims(rng, claim, ("{} backdrop", "{} background"), ("{} style", "art by {}"))
    return ", ".join([*parts, *_some(rng, QUALITY, 3)])


def short(rng: np.random.Generator, names: Sequence[str], claim: Scene) -> str:
    """Plain words: "noto gun red"."""
    front: list[str] = []
    back: list[str] = []
    for said in (claim.background, claim.style):
        if said is not None:
            (front if rng.random() < 0.5 else back).append(said)
    return " ".join([*front, f" {_one(rng, ('and', '', 'with'))} ".join(names), *back])


def request(rng: np.random.Generator, names: Sequence[str], claim: Scene) -> str:
    """A request: "please show me a gun; make the background red and the style noto"."""
    asks = ("please show me", "i would like to see", "can you draw", "give me")
    text = f"{_one(rng, asks)} " + " plus ".join(with_article(name) for name in names)
    wishes = []
    if claim.background is not None:
        wishes.append(f"make the background {claim.background}")
    if claim.style is not None:
        wishes.append(f"let the style be {claim.style}")
    return "; ".join([text, *([" and ".join(wishes)] if wishes else [])])


def form(rng: np.random.Generator, names: Sequence[str], claim: Scene) -> str:
    """A form that is filled in: "subject = gun | colour behind = red | manner = noto"."""
    rows = [f"{_one(rng, ('subject', 'shown', 'item'))} = {' + '.join(names)}"]
    if claim.background is not None:
        rows.append(f"{_one(rng, ('colour behind', 'canvas'))} = {claim.background}")
    if claim.style is not None:
        rows.append(f"{_one(rng, ('manner', 'font'))} = {claim.style}")
    return " | ".join(rows)


Dialect = Callable[[np.random.Generator, Sequence[str], Scene], str]
DIALECTS: dict[str, Dialect] = {
    "classic": classic,
    "sentence": sentence,
    "tags": tags,
    "prompt": prompt,
    "short": short,
}
VALIDATION: dict[str, Dialect] = {"request": request}
"""In no training caption; settings of the tower may be chosen by it."""
HELD_OUT_DIALECT = "form"
HELD_OUT: dict[str, Dialect] = {HELD_OUT_DIALECT: form}
"""In no training caption, and no setting is chosen by it."""
SHARES = (0.35, 0.2, 0.15, 0.15, 0.15)


def write(rng: np.random.Generator, scene: Scene) -> Caption:
    """Write a caption that is true of the scene, in a dialect chosen by SHARES."""
    claim = claimed(rng, scene)
    dialect = list(DIALECTS.values())[rng.choice(len(DIALECTS), p=SHARES)]
    return Caption(dialect(rng, [name_of(rng, thing) for thing in scene.objects], claim), claim)


def claimed(rng: np.random.Generator, scene: Scene) -> Scene:
    """Leave background and style out of what is claimed, now and then."""
    background = scene.background if rng.random() < NAMED else None
    return Scene(scene.objects, background, scene.style if rng.random() < NAMED else None)


def _claims(
    rng: np.random.Generator, claim: Scene, on: Sequence[str], manner: Sequence[str]
) -> list[str]:
    said = []
    if claim.background is not None:
        said.append(_one(rng, on).format(claim.background))
    if claim.style is not None:
        said.append(_one(rng, manner).format(claim.style))
    return said


def _adjective(rng: np.random.Generator) -> str:
    return _one(rng, ADJECTIVES) + " " if rng.random() < 0.5 else ""


def _one(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return str(choices[int(rng.integers(len(choices)))])


def _some(rng: np.random.Generator, choices: Sequence[str], most: int) -> list[str]:
    count = int(rng.integers(0, most + 1))
    return [str(word) for word in rng.permutation(np.array(choices))[:count]]
