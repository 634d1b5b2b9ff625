"""What two MODELs differ in, as a diff: only weights that patches touch are read."""

from __future__ import annotations

from typing import Any

import torch

from ..trust_engine.diff import SparseOffset, WeightDiff
from ..trust_engine.errors import ModelError
from .patching import is_ours
from .weights import PREFIX, Weights

Applied = tuple[WeightDiff, float]  # a diff and its strength


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


def diffs_between(before: Any, after: Any) -> list[Applied]:
    """List the diffs that are all that `after` has and `before` has not; else none.

    Another node's patch, a diff that is there in part, and another base leave nothing to name.
    """
    if getattr(before, "model", 0) is not getattr(after, "model", 1):
        return []
    found: dict[tuple[int, float], tuple[WeightDiff, list[str]]] = {}
    for name in dict.fromkeys([*before.patches, *after.patches]):
        for strength, source in _added(before.patches.get(name, []), after.patches.get(name, [])):
            if source is None:
                return []
            found.setdefault((id(source), strength), (source, []))[1].append(name)
    for source, names in found.values():
        whole = {PREFIX + key for key, offset in source.offsets.items() if not offset.is_zero}
        if len(names) != len(whole) or set(names) != whole:
            return []
    return [(source, strength) for (_, strength), (source, _) in found.items()]


def _added(old: list, new: list) -> list[tuple[float, WeightDiff | None]]:
    """List (strength, diff) of what stands behind the old patches; None for what is not ours."""
    if len(new) < len(old) or any(a is not b for a, b in zip(old, new, strict=False)):
        return [(0.0, None)]
    return [
        (float(entry[0]), getattr(entry[1], "source", None) if _plain(entry) else None)
        for entry in new[len(old) :]
    ]


def _plain(entry: Any) -> bool:
    """Tell whether a patch is a diff of ours, put on by its strength alone."""
    return is_ours(entry) and entry[2] == 1.0 and not any(entry[3:5])


def _differ(before: Any, after: Any, name: str) -> bool:
    """Tell whether two clones of one model have other patches on a weight."""
    one, two = before.patches.get(name, []), after.patches.get(name, [])
    if len(one) != len(two):
        return True
    return any(a is not b for a, b in zip(one, two, strict=True))
