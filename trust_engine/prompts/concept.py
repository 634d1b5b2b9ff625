"""From concepts to prompts: what to erase, what to draw instead, what to keep."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F

from ..errors import SpecError
from ..models.contract import Conditioning, TextEncoder, stack
from ..phrases import named_in, quoted, with_article
from ..spec import ConceptSpec
from .kinds import Surroundings, written
from .templates import STYLES

MAX_TOKENS = 75
NEIGHBOURS = 32


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


def build_prompts(
    concepts: Sequence[ConceptSpec],
    encoder: TextEncoder,
    vocabulary: Sequence[str] = (),
    styles: Sequence[str] = (),
    named: bool = False,
    left_out: Collection[str] = (),
    beside: bool = False,
) -> PromptSet:
    """Write the prompts for concepts; raises SpecError for one the encoder cannot take.

    named: beside a style keep only what names another one, for a picture that leaves it open may
    show what is to go; left_out: words of the vocabularies that mean a concept, though they do not
    name it; beside: erase single concepts also where another thing is asked for, which stays.
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
        prompts = written(concept, near, named, beside)
        erased = _unnamed(concept, list(prompts.targets()), concepts)
        anchored |= {target: (anchor, prompts.push) for target, anchor in erased}
        preserve += prompts.retain()
        kept += prompts.words()
        proposed.append(prompts.proposed)
    keep = [
        prompt
        for prompt in dict.fromkeys(preserve)
        if prompt not in anchored and not any(concept.carried_by(prompt) for concept in concepts)
    ]
    anchors, pushes = zip(*anchored.values(), strict=True)
    words = dict.fromkeys(w for w in kept if not any(c.carried_by(w) for c in concepts))
    found = PromptSet(tuple(anchored), anchors, pushes, tuple(keep), tuple(words), tuple(proposed))
    refuse_long(found.texts, encoder)
    return found


def refuse_long(prompts: Iterable[str], encoder: TextEncoder) -> None:
    """Raise SpecError for a prompt that the encoder cannot take."""
    for prompt in prompts:
        count = encoder.count_tokens(prompt)
        if count > MAX_TOKENS:
            raise SpecError(
                f"prompt has {count} tokens, at most {MAX_TOKENS} fit; use fewer words: "
                f"{quoted(prompt)}"
            )


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
            f"every sentence without {quoted(concept.name)} still names what is to be forgotten",
            remedy="say what to draw instead: {anchor TEXT}",
        )
    return fit


def _wished(one: ConceptSpec, concept: ConceptSpec) -> bool:
    """Tell whether an anchor may name its own concept: "a toy gun" for "gun", at a user's wish."""
    return one is concept and (concept.anchor is not None or bool(concept.templates))


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
