"""From concepts to prompts: what to erase, what to draw instead, what to keep."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch.nn.functional as F

from .conditioning import TextEncoder
from .errors import SpecError
from .spec import ConceptSpec

MAX_TOKENS = 75
NEIGHBOURS = 32
# Beyond an anchor that does not say what to draw instead; a style pushed far takes things along.
PUSH = {"conditional": 0.5, "style": 0.1}
NEUTRAL = "something"  # stands in for the concept in a user's template that has no anchor


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
LOOKS = ("{} in {} style", "a picture of {} in {} style", "{} on a blue background in {} style")
THINGS = ("a house", "a person", "a tree", "a dog", "a car", "a flower", "a boat", "a bird")
LOOKS_KEPT = 5
STYLES = ("photo", "watercolor", "oil painting", "pencil sketch", "cartoon", "pixel art")


@dataclass(frozen=True)
class PromptSet:
    """Prompts to erase, their anchors and how far beyond them to push, and prompts to preserve."""

    targets: tuple[str, ...]
    anchors: tuple[str, ...]
    push: tuple[float, ...]
    preserve: tuple[str, ...]


@dataclass(frozen=True)
class Surroundings:
    """What is near a concept: words of things and of styles worth keeping, nearest first."""

    things: tuple[str, ...]
    styles: tuple[str, ...]


def build_prompts(
    concepts: Sequence[ConceptSpec],
    encoder: TextEncoder,
    vocabulary: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> PromptSet:
    """Write the prompts for concepts; raises SpecError for one the encoder cannot take."""
    anchored: dict[str, tuple[str, float]] = {}
    preserve: list[str] = []
    for concept in concepts:
        near = _surroundings(concepts, concept, encoder, vocabulary, styles)
        # "a cat" leaves the background open, and chance may bring back the one that is to go.
        push = PUSH.get(concept.kind, 0.0) if concept.anchor is None else 0.0
        anchored |= {target: (anchor, push) for target, anchor in _erased(concept, near)}
        preserve += _kept(concept, near)
    keep = [
        prompt
        for prompt in dict.fromkeys(preserve)
        if prompt not in anchored and not any(concept.carried_by(prompt) for concept in concepts)
    ]
    anchors, pushes = zip(*anchored.values(), strict=True)
    prompts = PromptSet(tuple(anchored), anchors, pushes, tuple(keep))
    for prompt in (*prompts.targets, *prompts.anchors, *prompts.preserve):
        count = encoder.count_tokens(prompt)
        if count > MAX_TOKENS:
            raise SpecError(f"prompt has {count} tokens, at most {MAX_TOKENS} fit: {prompt[:60]!r}")
    return prompts


def _erased(concept: ConceptSpec, near: Surroundings) -> Iterator[tuple[str, str]]:
    """Pair every target prompt with its anchor."""
    if concept.templates and concept.kind != "combination":
        partner = f" {concept.condition}" if concept.condition else ""
        for word in concept.words:
            for template in concept.templates:
                goal = concept.anchor or (word if concept.condition else NEUTRAL)
                yield _fill(template, with_article(word) + partner), _fill(template, goal)
        return
    write: dict[str, Callable[[ConceptSpec, Surroundings], Iterator[tuple[str, str]]]] = {
        "single": _single,
        "combination": _combination,
        "conditional": _conditional,
        "style": _style,
    }
    yield from write[concept.kind](concept, near)


def _fill(template: str, phrase: str) -> str:
    """Put a phrase in; one that brings its own article wins over the template's."""
    if phrase.split()[0].lower() in {"a", "an", "the"}:
        return re.sub(r"\b(an?|the) \{\}", "{}", template).format(phrase)
    return template.format(phrase)


def _single(concept: ConceptSpec, near: Surroundings) -> Iterator[tuple[str, str]]:
    looks = [
        Template(f"{{}} in {style} style", f"a picture in {style} style")
        for style in (near.styles or STYLES)[:LOOKS_KEPT]
    ]
    for word in concept.words:
        for template in (*TEMPLATES, *looks):
            instead = template.without
            if concept.anchor is not None:
                instead = template.carrying.format(with_article(concept.anchor))
            yield template.carrying.format(with_article(word)), instead


def _combination(concept: ConceptSpec, _near: Surroundings) -> Iterator[tuple[str, str]]:
    """Keep the member that is named first: a causal text encoder has read it before the second."""
    companion = with_article(str(concept.companion))
    templates = concept.templates or PAIRS
    for word in concept.words:
        for template in templates:
            for first, second in ((with_article(word), companion), (companion, with_article(word))):
                goal = first if concept.anchor is None else with_article(concept.anchor)
                if concept.templates:
                    yield _fill(template, f"{first} and {second}"), _fill(template, goal)
                else:
                    yield template.format(first, second), _alone(template).format(goal)


def _alone(template: str) -> str:
    """Take the second of two things out of a sentence."""
    return re.sub(r"\{\} (and|with|next to) \{\}", "{}", template)


def _conditional(concept: ConceptSpec, near: Surroundings) -> Iterator[tuple[str, str]]:
    """Keep the thing and drop the condition, which a causal text encoder reads after it."""
    templates = [(t, t.replace(" {}", "", 1) if t.endswith("{} {}") else t) for t in UNDER]
    templates += [
        (f"{{}} {{}} in {style} style", f"{{}} in {style} style") for style in near.styles
    ]
    for word in concept.words:
        for carrying, without in templates:
            goal = with_article(word if concept.anchor is None else concept.anchor)
            yield carrying.format(with_article(word), concept.condition), without.format(goal)


def _style(concept: ConceptSpec, near: Surroundings) -> Iterator[tuple[str, str]]:
    things = near.things[:8] or THINGS
    for word in concept.words:
        for i, thing in enumerate(things):
            look = LOOKS[i % len(LOOKS)]
            plain = look.replace(" in {} style", "").format(with_article(thing))
            if concept.anchor is not None:
                plain = look.format(with_article(thing), concept.anchor)
            yield look.format(with_article(thing), word), plain


def _kept(concept: ConceptSpec, near: Surroundings) -> Iterator[str]:
    """Write what must stay; a combination's and a condition's members come first."""
    things = concept.preserve or near.things
    if concept.kind == "combination":
        members = (concept.words[0], str(concept.companion))
        for i, other in enumerate(things):
            for j, member in enumerate(members):
                order = (member, other) if (i + j) % 2 else (other, member)
                yield PAIRS[i % len(PAIRS)].format(*map(with_article, order))
        for template in TEMPLATES:
            for member in members:
                yield template.carrying.format(with_article(member))
    if concept.kind == "conditional":
        for word in concept.words:
            for template in TEMPLATES:
                yield template.carrying.format(with_article(word))
            for style in near.styles:
                yield f"{with_article(word)} in {style} style"
        for i, other in enumerate(things):
            yield UNDER[i % len(UNDER)].format(with_article(other), concept.condition)
    if concept.kind == "style":
        styles = near.styles or STYLES
        for i, thing in enumerate(concept.preserve or near.things or THINGS):
            look = LOOKS[i % len(LOOKS)]
            yield look.format(with_article(thing), styles[i % len(styles)])
        things = things or THINGS
    looks = () if concept.kind == "style" else (near.styles or STYLES)[:LOOKS_KEPT]
    for i, thing in enumerate(things):
        for j, suffix in enumerate(["", *(f" in {style} style" for style in looks)]):
            carrying = TEMPLATES[(i + 3 * j) % len(TEMPLATES)].carrying
            yield carrying.format(with_article(thing)) + suffix


def _surroundings(
    concepts: Sequence[ConceptSpec],
    concept: ConceptSpec,
    encoder: TextEncoder,
    vocabulary: Sequence[str],
    styles: Sequence[str],
) -> Surroundings:
    def free(words: Sequence[str]) -> list[str]:
        return [w for w in words if not any(other.carried_by(w) for other in concepts)]

    looks = tuple(free(styles))
    if concept.preserve and concept.kind != "style":
        return Surroundings((), looks)
    partners = {concept.companion, *concept.words}
    things = [word for word in free(vocabulary) if word not in partners]
    asked = [with_article(word) for word in concept.words[:1]]
    if concept.companion:
        asked.append(with_article(concept.companion))
    return Surroundings(nearest(asked, things, encoder), looks)


def nearest(
    asked: Sequence[str], words: Sequence[str], encoder: TextEncoder, count: int = NEIGHBOURS
) -> tuple[str, ...]:
    """Choose the words nearest to any of the asked phrases in text-embedding space."""
    if not words:
        return ()
    states = encoder.encode([*asked, *(with_article(word) for word in words)]).context
    # The last position has read the whole prompt in a causal text encoder.
    summary = F.normalize(states[:, -1].float(), dim=-1)
    likeness = (summary[len(asked) :] @ summary[: len(asked)].T).amax(1)
    order = likeness.argsort(descending=True, stable=True)
    return tuple(words[int(i)] for i in order[:count])


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase that starts without an article."""
    first = phrase.split()[0].lower()
    if first in {"a", "an", "the"}:
        return phrase
    vowel = first[0] in "aeio" or (first[:2] in {"ug", "um", "un", "up"} and first[:3] != "uni")
    return f"{'an' if vowel else 'a'} {phrase}"
