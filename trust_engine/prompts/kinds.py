"""What is written for one concept: a class for each kind, with its targets and what to retain."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import SpecError
from ..phrases import named_in, with_article
from ..spec import ConceptSpec
from .subset import deal
from .templates import LOOKS, LOOKS_KEPT, PAIRS, STYLES, TEMPLATES, THINGS, UNDER, Template

SENTENCES = 3  # for each member with each other thing: what stays in one may be lost in another
NEUTRAL = "something"  # stands in for the concept in a user's template that has no anchor


@dataclass(frozen=True)
class Surroundings:
    """What is near a concept: words of things and of styles worth keeping.

    Things come nearest first, and so do styles for a style.
    """

    things: tuple[str, ...]
    styles: tuple[str, ...]


class Written(ABC):
    """The prompts of one concept.

    beside: erase a single concept also beside other things; named: keep beside a style only what
    names another one.
    """

    overshoot = 1.0  # times eta, where what is drawn instead is the engine's choice

    def __init__(
        self, concept: ConceptSpec, near: Surroundings, named: bool = False, beside: bool = False
    ) -> None:
        self.concept, self.near, self.named, self.beside = concept, near, named, beside
        self.looks = ["", *(f" in {style} style" for style in (near.styles or STYLES)[:LOOKS_KEPT])]
        self.others = concept.preserve or near.things  # what stays beside members and styles

    @property
    def push(self) -> float:
        """Return by how much eta is multiplied.

        An anchor of the user's is a single one and leaves nothing open, where "a cat" leaves the
        background to chance. A style takes things along whatever it is answered as.
        """
        return 1.0 if self.concept.anchor is not None else self.overshoot

    @property
    def proposed(self) -> tuple[str, ...]:
        """List what the vocabularies offer of it, nearest first."""
        return self.near.things

    def targets(self) -> Iterator[tuple[str, str]]:
        """Pair every prompt that is to be erased with its anchor."""
        return self._templated() if self.concept.templates else self._own()

    @abstractmethod
    def retain(self) -> Iterator[str]:
        """Write what must stay; members of a combination or a condition come first."""

    def words(self) -> Iterator[str]:
        """List what `retain` writes sentences about, members first."""
        yield from self.others

    @abstractmethod
    def _own(self) -> Iterator[tuple[str, str]]:
        """Pair the engine's own sentences."""

    def _templated(self) -> Iterator[tuple[str, str]]:
        """Pair the user's sentences."""
        concept = self.concept
        partner = f" {concept.condition}" if concept.condition else ""
        for word in concept.words:
            for template in concept.templates:
                own = with_article(word)
                instead = own if concept.condition else NEUTRAL
                goal = with_article(concept.anchor) if concept.anchor is not None else instead
                yield _fill(template, own + partner), _fill(template, goal)

    def _things(self, things: Sequence[str], looks: Sequence[str]) -> Iterator[str]:
        """Write each thing in every look, each time in another sentence."""
        sentences = deal(TEMPLATES, len(things), len(looks), step=3)
        for thing, chosen in zip(things, sentences, strict=True):
            for look, template in zip(looks, chosen, strict=True):
                yield template.carrying.format(with_article(thing)) + look

    def _instead_of(self, members: Sequence[str]) -> list[str]:
        """List things to draw instead of a member; without a vocabulary, what the user keeps."""
        things = map(with_article, self.near.things or self.concept.preserve or THINGS)
        return [t for t in things if not named_in(t, members)] or [with_article(NEUTRAL)]


class Single(Written):
    """A thing: left out of its sentences."""

    def _own(self) -> Iterator[tuple[str, str]]:
        concept = self.concept
        looks = [Template(f"{{}}{look}", f"a picture{look}") for look in self.looks[1:]]
        for word in concept.words:
            for template in (*TEMPLATES, *looks):
                instead = template.without
                if concept.anchor is not None:
                    instead = template.carrying.format(with_article(concept.anchor))
                yield template.carrying.format(with_article(word)), instead
        if self.beside:
            yield from self._beside()

    def _beside(self) -> Iterator[tuple[str, str]]:
        """Leave it out where another thing is asked for, too."""
        anchor, words = self.concept.anchor, [with_article(word) for word in self.concept.words]
        rows = [(word, i, t) for word in words for i, t in enumerate(2 * PAIRS)]
        others = deal(self._instead_of(words), len(rows))
        looks = deal(self.looks[1:], len(rows) // 2)  # every second row has one
        for number, (word, i, template) in enumerate(rows):
            (other,), look = others[number], looks[number // 2][0] if i % 2 else ""
            pair = (word, other) if i < len(PAIRS) else (other, word)
            goal = _alone(template).format(other)
            if anchor is not None:
                it = with_article(anchor)
                goal = template.format(*(it if thing == word else thing for thing in pair))
            yield template.format(*pair) + look, goal + look

    def retain(self) -> Iterator[str]:
        """Write the things that stay, in every look."""
        yield from self._things(self.others, self.looks)


class Combination(Written):
    """Two things: the member that is named first stays, and others are drawn for the second.

    A causal text encoder has read the first before the second. Were the second left out, a model
    would learn to leave out whatever goes with the first.
    """

    # What many different anchors have in common is little of the way from the concept.
    overshoot = 2.7

    def _pairs(self) -> tuple[list[tuple[str, str]], list[str]]:
        """Name the members in both orders, and list what is drawn for the second."""
        companion = with_article(str(self.concept.companion))
        words = [with_article(word) for word in self.concept.words]
        both = [p for word in words for p in ((word, companion), (companion, word))]
        return both, self._instead_of([companion, *words])

    def _templated(self) -> Iterator[tuple[str, str]]:
        concept, (pairs, others) = self.concept, self._pairs()
        rows = [(pair, template) for pair in pairs for template in concept.templates]
        chosen = deal(others, len(rows))
        for ((first, second), template), (other,) in zip(rows, chosen, strict=True):
            goal = concept.anchor or f"{first} and {other}"
            yield _fill(template, f"{first} and {second}"), _fill(template, with_article(goal))

    def _own(self) -> Iterator[tuple[str, str]]:
        anchor, (pairs, others) = self.concept.anchor, self._pairs()
        rows = [(pair, template) for pair in pairs for template in PAIRS]
        looks, chosen = deal(self.looks[1:], len(rows)), deal(others, len(rows), 2, turn=2)
        for ((first, second), template), (look,), two in zip(rows, looks, chosen, strict=True):
            for suffix, other in zip(("", look), two, strict=True):
                goal = template.format(first, other)
                if anchor is not None:
                    goal = _alone(template).format(with_article(anchor))
                yield template.format(first, second) + suffix, goal + suffix

    def retain(self) -> Iterator[str]:
        """Write each member with every other thing in a few sentences, and alone."""
        members = (self.concept.words[0], str(self.concept.companion))
        pairs = [pair for o in self.others for m in members for pair in ((m, o), (o, m))]
        sentences = deal(PAIRS, len(pairs), SENTENCES, turn=5)
        looks = deal(self.looks, len(pairs) // 2, SENTENCES, step=2)  # one choice for both orders
        for i, pair in enumerate(pairs):
            for sentence, look in zip(sentences[i], looks[i // 2], strict=True):
                yield sentence.format(*map(with_article, pair)) + look
        for template in TEMPLATES:
            for member in members:
                for look in self.looks[:SENTENCES]:  # or alike members are lost
                    yield template.carrying.format(with_article(member)) + look
        yield from self._things(self.others, [""])  # the pairs have the looks, and are many more

    def words(self) -> Iterator[str]:
        """List the members and the other things."""
        yield from (self.concept.words[0], str(self.concept.companion))
        yield from self.others


class Conditional(Written):
    """A thing under a condition, which a causal text encoder reads after it: the thing stays."""

    overshoot = 1.6

    def _own(self) -> Iterator[tuple[str, str]]:
        concept = self.concept
        templates = [(t, t.replace(" {}", "", 1) if t.endswith("{} {}") else t) for t in UNDER]
        templates += [
            (f"{{}} {{}} in {style} style", f"{{}} in {style} style") for style in self.near.styles
        ]
        for word in concept.words:
            for carrying, without in templates:
                goal = with_article(word if concept.anchor is None else concept.anchor)
                yield carrying.format(with_article(word), concept.condition), without.format(goal)

    def retain(self) -> Iterator[str]:
        """Write the thing elsewhere, other things under the condition, and other things."""
        for word in self.concept.words:
            for template in TEMPLATES:
                yield template.carrying.format(with_article(word))
            for style in self.near.styles:
                yield f"{with_article(word)} in {style} style"
        sentences = deal(UNDER, len(self.others))
        for other, (sentence,) in zip(self.others, sentences, strict=True):
            yield sentence.format(with_article(other), self.concept.condition)
        yield from self._things(self.others, self.looks)

    def words(self) -> Iterator[str]:
        """List the thing and the others."""
        yield from self.concept.words
        yield from self.others


class Style(Written):
    """A style: its things in one other style, the nearest, for without one it may come back."""

    overshoot = 0.0  # one anchor is the whole way

    @property
    def push(self) -> float:
        """Return by how much eta is multiplied: it needs none, whatever it is answered as."""
        return self.overshoot

    @property
    def proposed(self) -> tuple[str, ...]:
        """List the styles that the vocabularies offer, nearest first."""
        return self.near.styles

    @property
    def _instead(self) -> str:
        """Name the style that is drawn instead."""
        if self.concept.anchor is not None:
            return self.concept.anchor
        if not self.near.styles:
            raise SpecError(
                f"no style is known to draw instead of {self.concept.name!r}, but those that are "
                "to go",
                remedy="name one: {anchor TEXT}",
            )
        return self.near.styles[0]

    def _templated(self) -> Iterator[tuple[str, str]]:
        instead = self._instead
        for word in self.concept.words:
            for template in self.concept.templates:
                yield template.format(word), template.format(instead)

    def _own(self) -> Iterator[tuple[str, str]]:
        concept, things, instead = self.concept, self.near.things or THINGS, self._instead
        for word in concept.words:
            for thing, (look,) in zip(things, deal(LOOKS, len(things)), strict=True):
                phrase = with_article(thing)
                yield look.format(phrase, word), look.format(phrase, instead)

    def retain(self) -> Iterator[str]:
        """Write things in other styles, once or, if only those stay, in each of them."""
        styles, things = self.near.styles, self.others or THINGS
        each = len(styles) if self.named else min(1, len(styles))
        looks = deal(LOOKS, len(things), each, step=3)
        named = deal(styles, len(things), each) if styles else []
        for j in range(each):
            for thing, look, style in zip(things, looks, named, strict=True):
                yield look[j].format(with_article(thing), style[j])
        if not (self.named and styles):
            yield from self._things(things, [""])

    def words(self) -> Iterator[str]:
        """List the styles and, unless a picture without one may show what goes, the things."""
        yield from self.near.styles
        if not (self.named and self.near.styles):
            yield from self.others


KINDS: dict[str, type[Written]] = {
    "single": Single,
    "combination": Combination,
    "conditional": Conditional,
    "style": Style,
}


def written(
    concept: ConceptSpec, near: Surroundings, named: bool = False, beside: bool = False
) -> Written:
    """Choose a concept's class by its kind."""
    return KINDS[concept.kind](concept, near, named, beside)


def _fill(template: str, phrase: str) -> str:
    """Put a phrase in; one that brings its own article wins over the template's."""
    if phrase.split()[0].lower() in {"a", "an", "the"}:
        return re.sub(r"\b(an?|the) \{\}", "{}", template).format(phrase)
    return template.format(phrase)


def _alone(template: str) -> str:
    """Take the second of two things out of a sentence."""
    return re.sub(r"\{\} (and|with|next to) \{\}", "{}", template)
