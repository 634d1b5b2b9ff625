"""From a concept to prompts: what to erase, what to draw instead, what to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F

from .conditioning import TextEncoder
from .errors import SpecError
from .spec import ConceptSpec

MAX_TOKENS = 75
NEIGHBOURS = 20


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


@dataclass(frozen=True)
class PromptSet:
    """Prompts to erase, their anchors (one each), and prompts to preserve."""

    targets: tuple[str, ...]
    anchors: tuple[str, ...]
    preserve: tuple[str, ...]


def build_prompts(
    concept: ConceptSpec, vocabulary: Sequence[str], encoder: TextEncoder
) -> PromptSet:
    """Write the prompts for a concept; raises SpecError for one the encoder cannot take."""
    if concept.kind != "single":
        raise SpecError(f"{concept.kind} concepts are not built yet; use --kind single")
    targets, anchors = [], []
    for word in concept.words:
        for template in TEMPLATES:
            targets.append(template.carrying.format(with_article(word)))
            anchors.append(
                template.without
                if concept.anchor is None
                else template.carrying.format(with_article(concept.anchor))
            )
    keep = concept.preserve or propose_preserve(concept, vocabulary, encoder)
    preserve = tuple(
        TEMPLATES[i % len(TEMPLATES)].carrying.format(with_article(word))
        for i, word in enumerate(keep)
    )
    for prompt in (*targets, *anchors, *preserve):
        count = encoder.count_tokens(prompt)
        if count > MAX_TOKENS:
            raise SpecError(f"prompt has {count} tokens, at most {MAX_TOKENS} fit: {prompt[:60]!r}")
    return PromptSet(tuple(targets), tuple(anchors), preserve)


def propose_preserve(
    concept: ConceptSpec, vocabulary: Sequence[str], encoder: TextEncoder, count: int = NEIGHBOURS
) -> tuple[str, ...]:
    """Choose the vocabulary's words nearest to the concept in text-embedding space."""
    own = {word.lower() for word in concept.words}
    words = [word for word in vocabulary if word.lower() not in own]
    if not words:
        return ()
    states = encoder.encode([with_article(word) for word in (concept.words[0], *words)]).context
    # The last position has read the whole prompt in a causal text encoder.
    summary = F.normalize(states[:, -1].float(), dim=-1)
    order = (summary[1:] @ summary[0]).argsort(descending=True, stable=True)
    return tuple(words[int(i)] for i in order[:count])


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase that starts without an article."""
    first = phrase.split()[0].lower()
    if first in {"a", "an", "the"}:
        return phrase
    vowel = first[0] in "aeio" or (first[:2] in {"ug", "um", "un", "up"} and first[:3] != "uni")
    return f"{'an' if vowel else 'a'} {phrase}"
