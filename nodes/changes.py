"""What two MODELs differ in, as a diff: only weights that patches touch are read."""

from __future__ import annotations

from typing import Any

import torch

from ..trust_engine.diff import SparseOffset, WeightDiff
from ..trust_engine.errors import ModelError
from .weights import PREFIX, Weights


def between_models(before: Any, after: Any) -> WeightDiff:
    """Return after - before; raises ModelError unless both are of one kind and differ."""
    old, new = Weights(before), Weights(after)
    if old.shapes != new.shapes:
        raise ModelError("`before` and `after` are models of two kinds; connect two of one model")
    same = getattr(before, "model", 0) is getattr(after, "model", 1)
    keys = [k for k in old.shapes if not same or _differ(before, after, PREFIX + k)]
    offsets = {}
    for key in keys:
        a, b = old.read(key), new.read(key)
        if not torch.equal(a, b):
            offsets[key] = SparseOffset.of(b.double() - a.double())
    if not offsets:
        raise ModelError(
            "`before` and `after` are the same model; connect the untouched one to `before` and "
            "the one under a diff to `after`"
        )
    return WeightDiff(offsets, {"base": old.fingerprint()})


def _differ(before: Any, after: Any, name: str) -> bool:
    """Tell whether two clones of one model have other patches on a weight."""
    one, two = before.patches.get(name, []), after.patches.get(name, [])
    if len(one) != len(two):
        return True
    return any(a is not b for a, b in zip(one, two, strict=True))
