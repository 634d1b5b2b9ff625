"""From concepts to prompts: what to erase, what to draw instead, what to keep."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch.nn.functional as F

from ..errors import SpecError
from ..models.conditioning import Conditioning, TextEncoder, stack
from ..phrases import named_in, quoted, with_article
from ..spec import ConceptSpec
from .templates import LOOKS, LOOKS_KEPT, PAIRS, STYLES, TEMPLATES, THINGS, UNDER, Template

MAX_TOKENS = 75
NEIGHBOURS = 32
# Times eta. What many different anchors have in common is little of the way from the concept, so
# a combination goes far beyond them. A style has one anchor and needs none of it.
PUSH = {"combination": 2.7, "conditional": 1.6, "style": 0.0}
SENTENCES = 3  # for each member with each other thing: what stays in one may be lost in another
NEUTRAL = "something"  # stands in for the concept in a user's template that has no anchor


@dataclass(frozen=True)
class PromptSet:
    """Prompts to erase, their anchors, times eta to push beyond them, and prompts to preserve.

    kept: the things, styles and members that the prompts to preserve are about, as words; proposed:
    for each concept what the vocabularies offer of it, nearest first.
    """

    targets: tuple[str, ...]
    anchors: tuple[str, ...]
    push: tuple[float, ...]
    preserve: tuple[str, ...]
    kept: tuple[str, ...] = ()
    proposed: tuple[tuple[str, ...], ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """List all prompts, in the order in which a run encodes them."""
        return (*self.targets, *self.anchors, *self.preserve)


@dataclass(frozen=True)
class Surroundings:
    """What is near a concept: words of things and of styles worth keeping.

    Things come nearest first, and so do styles for a style.
    """

    things: tuple[str, ...]
    styles: tuple[str, ...]


def build_prompts(
    concepts: Sequence[ConceptSpec],
    encoder: TextEncoder,
    vocabulary: Sequence[str] = (),
    styles: Sequence[str] = (),
    robust: bool = False,
    left_out: Collection[str] = (),
) -> PromptSet:
    """Write the prompts for concepts; raises SpecError for one the encoder cannot take.

    left_out: words of the vocabularies that mean a concept, though they do not name it.
    robust: erase single concepts also where another thing is asked for, which stays; beside a style
    keep only what names another one, for a picture that leaves it open may show what is to go.
    """
    anchored: dict[str, tuple[str, float]] = {}
    preserve: list[str] = []
    kept: list[str] = []
    proposed: list[tuple[str, ...]] = []
    vocabulary = _free([w for w in vocabulary if not named_in(w, left_out)], concepts)
    styles = _free([w for w in styles if not named_in(w, left_out)], concepts)
    once = EncodeOnce(encoder)
    for concept in concepts:
        near = _surroundings(concepts, concept, once, vocabulary, styles)
        # An anchor of the user's is a single one and leaves nothing open, where "a cat" leaves the
        # background to chance. A style takes things along whatever it is answered as.
        plain = concept.anchor is not None and concept.kind != "style"
        push = 1.0 if plain else PUSH.get(concept.kind, 1.0)
        erased = [*_erased(concept, near), *(_beside(concept, near) if robust else ())]
        erased = _unnamed(concept, erased, concepts)
        anchored |= {target: (anchor, push) for target, anchor in erased}
        preserve += _kept(concept, near, robust)
        kept += _kept_words(concept, near, robust)
        proposed.append(near.styles if concept.kind == "style" else near.things)
    keep = [
        prompt
        for prompt in dict.fromkeys(preserve)
        if prompt not in anchored and not any(concept.carried_by(prompt) for concept in concepts)
    ]
    anchors, pushes = zip(*anchored.values(), strict=True)
    words = dict.fromkeys(w for w in kept if not any(c.carried_by(w) for c in concepts))
    prompts = PromptSet(
        tuple(anchored), anchors, pushes, tuple(keep), tuple(words), tuple(proposed)
    )
    for prompt in prompts.texts:
        count = encoder.count_tokens(prompt)
        if count > MAX_TOKENS:
            raise SpecError(
                f"prompt has {count} tokens, at most {MAX_TOKENS} fit; use fewer words: "
                f"{quoted(prompt)}"
            )
    return prompts


def _unnamed(
    concept: ConceptSpec, erased: Sequence[tuple[str, str]], concepts: Sequence[ConceptSpec]
) -> list[tuple[str, str]]:
    """Leave out pairs whose anchor shows what is to go: "a picture" cannot stand for "picture"."""
    fit = [
        (target, anchor)
        for target, anchor in erased
        if not any(one.carried_by(anchor) for one in concepts if not _wished(one, concept))
    ]
    if not fit:
        raise SpecError(
            f"every sentence without {quoted(concept.name)} still names what is to be forgotten; "
            "say what to draw instead: --anchor TEXT"
        )
    return fit


def _wished(one: ConceptSpec, concept: ConceptSpec) -> bool:
    """Tell whether an anchor may name its own concept: "a toy gun" for "gun", at a user's wish."""
    return one is concept and (concept.anchor is not None or bool(concept.templates))


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
    looks = [Template(f"{{}}{look}", f"a picture{look}") for look in _looks(near)[1:]]
    for word in concept.words:
        for template in (*TEMPLATES, *looks):
            instead = template.without
            if concept.anchor is not None:
                instead = template.carrying.format(with_article(concept.anchor))
            yield template.carrying.format(with_article(word)), instead


def _beside(concept: ConceptSpec, near: Surroundings) -> Iterator[tuple[str, str]]:
    """Leave a single concept out where another thing is asked for, too."""
    if concept.kind != "single" or concept.templates:
        return
    words = [with_article(word) for word in concept.words]
    others, looks = cycle(_others(words, concept, near)), cycle(_looks(near)[1:])
    for word in words:
        for i, template in enumerate(2 * PAIRS):
            other, look = next(others), next(looks) if i % 2 else ""
            pair = (word, other) if i < len(PAIRS) else (other, word)
            goal = _alone(template).format(other)
            if concept.anchor is not None:
                anchor = with_article(concept.anchor)
                goal = template.format(*(anchor if thing == word else thing for thing in pair))
            yield template.format(*pair) + look, goal + look


def _combination(concept: ConceptSpec, near: Surroundings) -> Iterator[tuple[str, str]]:
    """Keep the member that is named first, and draw other things for the second.

    A causal text encoder has read the first before the second. Were the second left out, a model
    would learn to leave out whatever goes with the first.
    """
    companion = with_article(str(concept.companion))
    words = [with_article(word) for word in concept.words]
    others = cycle(_others([companion, *words], concept, near))
    looks = cycle(_looks(near)[1:])
    for word in words:
        for first, second in ((word, companion), (companion, word)):
            for template in concept.templates:
                goal = concept.anchor or f"{first} and {next(others)}"
                yield _fill(template, f"{first} and {second}"), _fill(template, with_article(goal))
            for template in () if concept.templates else PAIRS:
                for look in ("", next(looks)):
                    goal = template.format(first, next(others))
                    if concept.anchor is not None:
                        goal = _alone(template).format(with_article(concept.anchor))
                    yield template.format(first, second) + look, goal + look


def _others(members: Sequence[str], concept: ConceptSpec, near: Surroundings) -> list[str]:
    """List things to draw instead of a member; without a vocabulary, what the user keeps."""
    things = map(with_article, near.things or concept.preserve or THINGS)
    return [thing for thing in things if not named_in(thing, members)] or [with_article(NEUTRAL)]


def _looks(near: Surroundings) -> list[str]:
    """Write what follows a prompt to give it a look; the first gives none."""
    return ["", *(f" in {style} style" for style in (near.styles or STYLES)[:LOOKS_KEPT])]


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
    """Draw the things in one other style, the nearest: a prompt without one may bring it back."""
    things = near.things or THINGS
    if not near.styles and concept.anchor is None:
        raise SpecError(
            f"no style is known but those that are to go; name one to draw instead of "
            f"{concept.name!r}: --anchor TEXT"
        )
    instead = concept.anchor or near.styles[0]
    for word in concept.words:
        for i, thing in enumerate(things):
            look = LOOKS[i % len(LOOKS)]
            yield look.format(with_article(thing), word), look.format(with_article(thing), instead)


def _kept(concept: ConceptSpec, near: Surroundings, robust: bool) -> Iterator[str]:
    """Write what must stay; a combination's and a condition's members come first."""
    things = concept.preserve or near.things
    if concept.kind == "combination":
        members = (concept.words[0], str(concept.companion))
        pairs = [pair for o in things for m in members for pair in ((m, o), (o, m))]
        suffixes = _looks(near)
        for i, pair in enumerate(pairs):
            for j in range(SENTENCES):
                suffix = suffixes[(i // 2 + 2 * j) % len(suffixes)]
                yield PAIRS[(5 * i + j) % len(PAIRS)].format(*map(with_article, pair)) + suffix
        for template in TEMPLATES:
            for member in members:
                for suffix in suffixes[:SENTENCES]:  # or alike members are lost
                    yield template.carrying.format(with_article(member)) + suffix
    if concept.kind == "conditional":
        for word in concept.words:
            for template in TEMPLATES:
                yield template.carrying.format(with_article(word))
            for style in near.styles:
                yield f"{with_article(word)} in {style} style"
        for i, other in enumerate(things):
            yield UNDER[i % len(UNDER)].format(with_article(other), concept.condition)
    if concept.kind == "style":
        styles, things = near.styles, things or THINGS
        for j in range(len(styles) if robust else min(1, len(styles))):
            for i, thing in enumerate(things):
                look, style = LOOKS[(i + 3 * j) % len(LOOKS)], styles[(i + j) % len(styles)]
                yield look.format(with_article(thing), style)
        if robust and styles:
            return
    # A combination's pairs have the looks, and outnumber what is drawn alone.
    suffixes = _looks(near) if concept.kind in ("single", "conditional") else [""]
    for i, thing in enumerate(things):
        for j, suffix in enumerate(suffixes):
            carrying = TEMPLATES[(i + 3 * j) % len(TEMPLATES)].carrying
            yield carrying.format(with_article(thing)) + suffix


def _kept_words(concept: ConceptSpec, near: Surroundings, robust: bool) -> Iterator[str]:
    """List what `_kept` writes sentences about, members first."""
    if concept.kind == "combination":
        yield from (concept.words[0], str(concept.companion))
    elif concept.kind == "conditional":
        yield from concept.words
    elif concept.kind == "style":
        yield from near.styles
        if robust and near.styles:
            return
    yield from concept.preserve or near.things


def _surroundings(
    concepts: Sequence[ConceptSpec],
    concept: ConceptSpec,
    encoder: TextEncoder,
    vocabulary: Sequence[str],
    styles: Sequence[str],
) -> Surroundings:
    looks = tuple(styles)
    if concept.kind == "style":
        looks = looks or tuple(_free(STYLES, concepts))
        looks = nearest([_in_style(concept.words[0])], looks, encoder, len(looks), _in_style)
    if concept.preserve and concept.kind != "style":
        return Surroundings((), looks)
    partners = [word for word in (concept.companion, *concept.words) if word]
    things = [word for word in vocabulary if not named_in(word, partners)]
    asked = [with_article(word) for word in concept.words[:1]]
    if concept.companion:
        asked.append(with_article(concept.companion))
    return Surroundings(nearest(asked, things, encoder), looks)


def _free(words: Sequence[str], concepts: Sequence[ConceptSpec]) -> list[str]:
    """Leave out words that name a concept."""
    return [word for word in words if not any(one.carried_by(word) for one in concepts)]


class EncodeOnce:
    """An encoder that reads each prompt once, however many concepts ask for it."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.known: dict[str, Conditioning] = {}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, one row each: all that are new in one call."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if new:
            rows = self.encoder.encode(new)
            self.known |= {p: rows.select(slice(i, i + 1)) for i, p in enumerate(new)}
        return stack([self.known[prompt] for prompt in prompts])

    def count_tokens(self, prompt: str) -> int:
        """Count the prompt's tokens, start and end not counted."""
        return self.encoder.count_tokens(prompt)


def _in_style(style: str) -> str:
    return f"in {style} style"


def nearest(
    asked: Sequence[str],
    words: Sequence[str],
    encoder: TextEncoder,
    count: int = NEIGHBOURS,
    phrase: Callable[[str], str] = with_article,
) -> tuple[str, ...]:
    """Choose the words nearest to any of the asked phrases in text-embedding space.

    phrase: puts a word as the asked phrases are put.
    """
    if not words:
        return ()
    states = encoder.encode([*asked, *map(phrase, words)]).context
    # The last position has read the whole prompt in a causal text encoder.
    summary = F.normalize(states[:, -1].float(), dim=-1)
    likeness = (summary[len(asked) :] @ summary[: len(asked)].T).amax(1)
    order = likeness.argsort(descending=True, stable=True)
    return tuple(words[int(i)] for i in order[:count])
