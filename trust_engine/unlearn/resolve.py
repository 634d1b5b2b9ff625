"""What the engine does with a spec: more for several concepts, other steps where they pay."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from ..spec import UnlearnSpec

STEPS, PASSES, BETA = 0.5, 0.6, -0.5  # powers of the number of concepts: 50 cost less than 12 do
MOST = 0.3  # share of the entries that several concepts may change together
ROBUST = 0.8  # of the steps, for those of robust mode take much longer
RATE = 0.12  # of the spec's in robust mode: every weight moves, not one in thirty
BUDGET = 0.3  # share of all weights that may change in robust mode, unless the spec asks for more
# Likewise, layer by layer: a pair that shares a member with one that is to go is much like it, and
# only late told apart from it.
LONGER = {"combination": 1.5}


@lru_cache(maxsize=64)
def resolve(spec: UnlearnSpec) -> UnlearnSpec:
    """Return what a run does: for one concept that is no combination, not robust, the spec itself.

    Each of several concepts needs states and entries of its own, and is one part of the effect that
    preservation weighs against. With one concept's passes and budget, a run over five left most of
    each (docs/results/unlearning.md).
    """
    n = len(spec.concepts)
    longer = ROBUST if spec.robust else 1.0
    if not spec.together:
        longer = max(LONGER.get(concept.kind, 1.0) for concept in spec.concepts)
    more = replace(
        spec,
        steps=max(1, round(spec.steps * n**STEPS * longer)),
        passes=round(spec.passes * n**PASSES),
        budget=max(spec.budget, min(n * spec.budget, MOST)),
        beta=spec.beta * n**BETA,
    )
    return _robust(more) if spec.robust else more


def _robust(spec: UnlearnSpec) -> UnlearnSpec:
    """Set aside what robust mode does its own way: a shrinking mask over all weights."""
    return replace(
        spec,
        engine="global",
        saliency="noise",
        objective="none",
        selection="neurons",
        granularity="entry",
        schedule="shrinking",
        refresh=5,
        rate=RATE * spec.rate,
        budget=max(BUDGET, spec.budget),
    )
