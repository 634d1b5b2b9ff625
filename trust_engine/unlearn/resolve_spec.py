"""What the engine does with a spec: more for several concepts, other steps where they pay."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from ..spec import UnlearnSpec

STEPS, PASSES, BETA = 0.5, 0.6, -0.5  # powers of the number of concepts: 50 cost less than 12 do
MOST = 0.3  # share of the entries that several concepts may change together
# Of the steps, layer by layer: a pair that shares a member with one that is to go is much like it,
# and only late told apart from it.
LONGER = {"combination": 1.5}


@lru_cache(maxsize=64)
def resolve(spec: UnlearnSpec) -> UnlearnSpec:
    """Return what a run trains: for one concept that is no combination, the spec itself.

    Each of several concepts needs states and entries of its own, and is one part of the effect that
    preservation weighs against. With one concept's passes and budget, a run over five left most of
    each (docs/results/unlearning.md). What a scrubbing is shown of each, `pictures.recipe_of` says.
    """
    n, longer = len(spec.concepts), 1.0
    if not spec.together:
        longer = max(LONGER.get(concept.kind, 1.0) for concept in spec.concepts)
    return replace(
        spec,
        steps=max(1, round(spec.steps * n**STEPS * longer)),
        passes=round(spec.passes * n**PASSES),
        budget=max(spec.budget, min(n * spec.budget, MOST)),
        beta=spec.beta * n**BETA,
    )
