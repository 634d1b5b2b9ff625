"""Sentences that concepts are put into, and things and styles for where none are known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """A sentence that carries a thing, and the same sentence without it."""

    carrying: str
    without: str


TEMPLATES = (
    Template("{}", ""),
    Template("a picture of {}", "a picture"),
    Template("an image of {} on a white background", "an image of a white background"),
    Template("{} on a blue background", "a blue background"),
    Template("a drawing of {} on a black background", "a drawing of a black background"),
    Template("{} on a red background", "a red background"),
    Template("{} on a green background", "a green background"),
    Template("an icon of {} on a yellow background", "an icon of a yellow background"),
)
PAIRS = (
    "{} and {}",
    "a picture of {} and {}",
    "{} with {} on a white background",
    "{} next to {} on a blue background",
    "an image of {} and {} on a green background",
    "{} and {} on a red background",
)
UNDER = ("{} {}", "a picture of {} {}", "an image of {} {}", "a drawing of {} {}")
LOOKS = (
    "{} in {} style",
    "a picture of {} in {} style",
    "{} on a blue background in {} style",
    "an image of {} on a white background in {} style",
    "{} on a red background in {} style",
    "a drawing of {} on a green background in {} style",
    "{} on a black background in {} style",
    "an icon of {} on a yellow background in {} style",
)
THINGS = ("a house", "a person", "a tree", "a dog", "a car", "a flower", "a boat", "a bird")
LOOKS_KEPT = 5
STYLES = ("photo", "watercolor", "oil painting", "pencil sketch", "cartoon", "pixel art")
