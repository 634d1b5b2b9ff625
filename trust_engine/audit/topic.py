"""What an audit asks about: the concept, what a judge must see for it, and the world around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..demo.vocabulary import BACKGROUNDS, OBJECTS, STYLES, UNSEEN, every_phrase
from ..errors import SpecError
from ..phrases import with_article

SENSITIVE = (
    "nud", "naked", "nsfw", "sex", "porn", "erotic", "genital", "breast", "gore", "blood",
    "corpse", "violence", "mutilat", "suicide", "self-harm", "torture", "swastika", "hate",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """What a model can be asked for: objects with other words for them, styles, backgrounds.

    control: things the judge knows and the model never saw, the floor of every attack;
    hints: words an attacker may expect the text encoder to know.
    """

    objects: Mapping[str, tuple[str, ...]]
    styles: tuple[str, ...] = ()
    backgrounds: tuple[str, ...] = ()
    control: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


DEMO = World(OBJECTS, STYLES, BACKGROUNDS, tuple(UNSEEN), tuple(every_phrase()))
COMMON = ("cat", "dog", "horse", "car", "tree", "house", "apple", "bicycle", "chair", "boat")


@dataclass(frozen=True)
class Topic:
    """A concept under audit; `labels` are what the judge must see, all of them, to call it back.

    kind: single, combination (word and companion), conditional (word when condition), style.
    """

    word: str
    kind: str = "single"
    companion: str | None = None
    condition: str | None = None
    synonyms: tuple[str, ...] = ()
    world: World = field(default_factory=lambda: DEMO)

    @property
    def name(self) -> str:
        """Return the concept's name for people."""
        if self.kind == "combination":
            return f"{self.word} with {self.companion}"
        return f"{self.word} {self.condition}" if self.condition else self.word

    @property
    def labels(self) -> tuple[str, ...]:
        """Return what the judge must see; under a condition the thing alone is allowed."""
        if self.kind == "combination":
            return (self.word, str(self.companion))
        if self.kind == "conditional":
            return (self.word, self.background) if self.background else (self.name,)
        return (self.word,)

    @property
    def things(self) -> tuple[str, ...]:
        """Return the objects that the concept's prompts name; none for a style."""
        if self.kind == "style":
            return ()
        return self.labels if self.kind == "combination" else (self.word,)

    @property
    def background(self) -> str | None:
        """Return the background that a condition names, if it names one the world knows."""
        words = (self.condition or "").split()
        return next((ground for ground in self.world.backgrounds if ground in words), None)

    @property
    def sensitive(self) -> bool:
        """Tell whether pictures of it should be blurred until asked for."""
        text = " ".join((self.name, *self.synonyms)).lower()
        return any(word in text for word in SENSITIVE)

    def to_dict(self) -> dict[str, Any]:
        """Spell it out for the report."""
        texts = {name: getattr(self, name) for name in ("word", "kind", "companion", "condition")}
        return {**texts, "synonyms": list(self.synonyms), "labels": list(self.labels)}


def demo_topic(
    word: str, kind: str = "single", companion: str | None = None, condition: str | None = None
) -> Topic:
    """Look a concept up in Emoji World; raises SpecError for what its judge cannot tell."""
    known: Sequence[str] = (*OBJECTS, *UNSEEN) if kind != "style" else STYLES
    what = "a style" if kind == "style" else "an object"
    for name in (word, *([companion] if companion is not None else [])):
        if name not in known:
            raise SpecError(
                f"{name!r} is not {what} the demo's judge knows",
                remedy=f"use one of {', '.join(known)}, or give another {{judge}}",
            )
    topic = Topic(word, kind, companion, condition, OBJECTS.get(word, UNSEEN.get(word, ())))
    if condition is not None and topic.background is None:
        raise SpecError(
            f"{condition!r} names no background the demo's judge knows",
            field="condition",
            remedy=f"use one of {', '.join(BACKGROUNDS)}, or give another {{judge}}",
        )
    return topic


def open_topic(
    word: str,
    kind: str = "single",
    companion: str | None = None,
    condition: str | None = None,
    synonyms: Sequence[str] = (),
    retain: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> Topic:
    """Describe a concept of any model, for a judge that reads labels as words."""
    own = {word.lower(), (companion or "").lower()}
    objects: dict[str, tuple[str, ...]] = {
        name: () for name in (retain or COMMON) if name.lower() not in own
    }
    for name in (word, companion):
        if name and kind != "style":
            objects[name] = tuple(synonyms) if name == word else ()
    if kind == "style":
        styles = (word, *(s for s in styles if s != word))
    world = World(objects, tuple(styles), hints=(*objects, *synonyms))
    return Topic(word, kind, companion, condition, tuple(synonyms), world)


def named(word: str) -> str:
    """Put the article before a thing's word."""
    return with_article(word)
