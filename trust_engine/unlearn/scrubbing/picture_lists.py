"""Which pictures are drawn: of the concept alone, and of all that must stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from ...phrases import with_article
from ...prompts.concept import PromptSet
from ...prompts.subset import deal
from ...prompts.templates import PAIRS
from ...spec import ConceptSpec


@dataclass(frozen=True)
class PictureLists:
    """Prompts, a picture each; whoever wants others replaces a list.

    concepts: of each concept it alone, for what stands beside it would go with it; alone: other
    things, one at a time, or all that the user lists; pairs: two other things, without which all
    that is crowded would look like the concept's own; near: what is most like the concept and what
    usually stands beside it; anchors: of each concept's prompts what is to be seen instead, in
    their order and drawn from the same noises.
    """

    concepts: tuple[tuple[str, ...], ...]
    alone: tuple[str, ...]
    pairs: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    anchors: tuple[tuple[str, ...], ...] = ()

    @property
    def rest(self) -> tuple[str, ...]:
        """List all that must stay."""
        return (*self.alone, *self.pairs, *self.near)

    @property
    def prompts(self) -> tuple[str, ...]:
        """List all prompts: each concept's, their anchors, what stays."""
        return (*chain(*self.concepts), *chain(*self.anchors), *self.rest)

    @property
    def noises(self) -> list[int]:
        """Number the noises that the prompts are drawn from."""
        own, rest = list(range(sum(map(len, self.concepts)))), range(len(self.rest))
        return [*own, *(own if self.anchors else ()), *(len(own) + i for i in rest)]

    @property
    def places(self) -> tuple[range, range, range]:
        """Tell where among the prompts the concepts' are, those of what stays, and the anchors'."""
        own, anchors = sum(map(len, self.concepts)), sum(map(len, self.anchors))
        return range(own), range(own + anchors, len(self.prompts)), range(own, own + anchors)

    @property
    def counts(self) -> list[int]:
        """Count the pictures of each concept, and at last of what stays."""
        return [*map(len, self.concepts), len(self.rest)]


@dataclass(frozen=True)
class Counts:
    """How many pictures of each list are drawn; concept: of every one."""

    concept: int = 24
    alone: int = 60
    pairs: int = 60
    near: int = 0


def picture_lists(
    concepts: Sequence[ConceptSpec],
    prompts: PromptSet,
    counts: Counts | None = None,
    stays: Sequence[str] = (),
) -> PictureLists:
    """Choose from the prompts of a run on these concepts, evenly spread; stays: the user's own.

    Things near the concept are the vocabulary's nearest by text, or, where the user said what to
    preserve, those; a user's list thus is where a concept's companions are named.
    """
    counts = counts or Counts()
    styled = any(concept.kind == "style" for concept in concepts)
    own = [
        [t for t in prompts.targets if len(concepts) == 1 or concept.carried_by(t)]
        for concept in concepts
    ]
    things = [with_article(word) for word in prompts.kept]
    pairs = [] if styled else _pairs(things, counts.pairs)
    alone = counts.alone + counts.pairs - len(pairs)
    near = things[: max(1, counts.near)] if counts.near and not styled else []
    shown = [tuple(spread(targets, counts.concept)) for targets in own]
    anchor_of = dict(zip(prompts.targets, prompts.anchors, strict=True))
    anchors = tuple(tuple(anchor_of[target] for target in targets) for targets in shown)
    if stays:
        return PictureLists(tuple(shown), tuple(stays), anchors=anchors)
    return PictureLists(
        tuple(shown),
        tuple(spread(prompts.preserve, alone)),
        tuple(pairs),
        tuple(near[i % len(near)] for i in range(counts.near)) if near else (),
        anchors,
    )


def spread(prompts: Sequence[str], count: int) -> list[str]:
    """Take an evenly spread part, or the prompts again and again."""
    return [prompts[i * len(prompts) // count] for i in range(count)]


def _pairs(things: Sequence[str], count: int) -> list[str]:
    """Write pairs of things: each as often as any other, first or second, in turning sentences."""
    if len(things) < 2:
        return []
    firsts = deal(things, count)
    # The second walks as fast, and is further away each time that all have been first.
    seconds = [things[(i + 1 + (i // len(things)) % (len(things) - 1)) % len(things)]
               for i in range(count)]  # fmt: skip
    return [
        PAIRS[i % len(PAIRS)].format(first, second)
        for i, ((first,), second) in enumerate(zip(firsts, seconds, strict=True))
    ]
