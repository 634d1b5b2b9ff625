"""Diffs as vectors: add, subtract, scale, merge, thin out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .. import __version__
from ..errors import DiffError, SpecError
from ..models.unet_keys import layer_of, projection_of
from ..phrases import plain
from ..settings import in_range
from ..spec import ConceptSpec, UnlearnSpec, contradiction
from .file import payload_sha256
from .model_sampling import sampling_of
from .weight_diff import LowRankOffset, Offset, SparseOffset, WeightDiff

How = Literal["sum", "mean", "strongest"]
Parts = Sequence[tuple[WeightDiff, float]]


def between(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> WeightDiff:
    """Return tuned - base for two sets of weights under ldm names; adding it to base gives tuned.

    Exact within the rounding of the number type it is added in.
    """
    if {k: w.shape for k, w in base.items()} != {k: w.shape for k, w in tuned.items()}:
        raise DiffError("the two models have other weights or shapes; choose two of one family")
    return WeightDiff(
        {
            key: SparseOffset.of(tuned[key].double() - weight.double())
            for key, weight in base.items()
        }
    )


def scaled(diff: WeightDiff, strength: float) -> WeightDiff:
    """Return strength * diff."""
    return combine([(diff, strength)])


def added(a: WeightDiff, b: WeightDiff) -> WeightDiff:
    """Return a + b."""
    return combine([(a, 1.0), (b, 1.0)])


def subtracted(a: WeightDiff, b: WeightDiff) -> WeightDiff:
    """Return a - b."""
    return combine([(a, 1.0), (b, -1.0)])


def combine(parts: Parts, how: How = "sum") -> WeightDiff:
    """Compose diffs times strengths into one, in the order given.

    how, where several move one entry: sum them (as applying one after the other does), take
    their mean, or keep the one that moves it most.
    """
    if how not in get_args(How):
        raise SpecError(f"cannot merge by {how!r}; use one of {', '.join(get_args(How))}")
    check_parts(parts)
    keys = dict.fromkeys(key for diff, _ in parts for key in diff.offsets)
    offsets = {}
    for key in keys:
        there = [(diff.offsets[key], s) for diff, s in parts if key in diff.offsets]
        offsets[key] = _combined(there, how)
    return WeightDiff(offsets, lineage(parts, how))


def _combined(parts: Sequence[tuple[Offset, float]], how: How) -> Offset:
    """Combine what several diffs add to one weight: of low rank where that stays possible."""
    if len(parts) == 1:
        return parts[0][0].times(parts[0][1])
    low = [(*o.factors, strength) for o, strength in parts if o.factors is not None]
    sparse = [(o.sparse, strength) for o, strength in parts if o.sparse is not None]
    if how == "mean" and not sparse:
        low = [(up, down, strength / len(parts)) for up, down, strength in low]
    elif how != "sum" or not low:
        return _by_entries([(o.entries(), strength) for o, strength in parts], how)
    return _stacked(low, _by_entries(sparse, "sum") if sparse else None)


def _stacked(parts: Sequence[tuple[Tensor, Tensor, float]], sparse: SparseOffset | None) -> Offset:
    """Sum products of factors, times strengths, by stacking them.

    Directions that read the same are made one, so that a diff and its own reverse leave nothing.
    """
    up = torch.cat([strength * up.double() for up, _, strength in parts], 1)
    down, which = torch.cat([down for _, down, _ in parts]).unique(dim=0, return_inverse=True)
    summed = up.new_zeros(len(up), len(down), *up.shape[2:]).index_add_(1, which, up)
    offset = LowRankOffset(summed.float(), down, sparse)
    if len(down) * (summed[:, 0].numel() + down.shape[1]) < offset.numel:
        return offset.tidy()
    return offset.entries()  # the factors would take more than the weight itself


def _by_entries(parts: Sequence[tuple[SparseOffset, float]], how: How) -> SparseOffset:
    union = torch.cat([offset.indices for offset, _ in parts]).unique()
    total = torch.zeros(len(union), dtype=torch.float64)
    touched = torch.zeros(len(union), dtype=torch.float64)
    for offset, strength in parts:
        at = torch.searchsorted(union, offset.indices)
        value = strength * offset.values.double()
        if how == "strongest":
            total[at] = torch.where(value.abs() > total[at].abs(), value, total[at])
        else:
            total[at] += value
            touched[at] += 1
    if how == "mean":
        total /= touched
    return SparseOffset(parts[0][0].shape, union, total).with_values(total)


def check_parts(parts: Parts) -> None:
    """Raise SpecError for no part, a strength beyond -2..2 or wishes that exclude each other.

    Raises DiffError for unlike models.
    """
    for _, strength in parts:
        in_range("strength", strength, -2.0, 2.0)
    check_alike([diff for diff, _ in parts])
    forgotten = [c for diff, s in parts if s > 0 for c in _forgotten(diff.provenance)]
    if told := contradiction(list(dict.fromkeys(forgotten))):
        raise SpecError(f"these diffs do not go together: {told}")


def _forgotten(provenance: Mapping[str, Any]) -> tuple[ConceptSpec, ...]:
    """List the concepts that a diff and its parts erase, as far as they say so."""
    inner = provenance.get("parts")
    if isinstance(inner, list):
        erasing = (p for p in inner if isinstance(p, dict) and p.get("strength", 1.0) > 0)
        return tuple(concept for part in erasing for concept in _forgotten(part))
    try:
        return UnlearnSpec.from_json(provenance["spec"]).concepts
    except (KeyError, TypeError, SpecError):
        return ()


def check_alike(diffs: Sequence[WeightDiff]) -> None:
    """Raise SpecError for no diff, DiffError for diffs of models that are unlike."""
    if not diffs:
        raise SpecError("nothing to merge; name at least one diff")
    shapes: dict[str, tuple[int, ...]] = {}
    for diff in diffs:
        for key, shape in diff.shapes.items():
            if shapes.setdefault(key, shape) != shape:
                raise DiffError(
                    f"the diffs are of other kinds of model ({key} is {list(shapes[key])} and "
                    f"{list(shape)}); merge diffs of one family"
                )
    families = {f for diff in diffs if (f := diff.provenance.get("family"))}
    if len(families) > 1:
        named = plain(", ".join(sorted(families)), 80)
        raise DiffError(f"the diffs are of other families ({named}); merge diffs of one family")
    sampling_of(diffs)  # raises where a model could not be drawn as all of them say


def lineage(parts: Parts, how: str) -> dict[str, Any]:
    """Tell where a merged diff comes from."""
    # Only what all parts share still holds for the whole.
    first = parts[0][0].provenance
    shared = {
        name: first[name]
        for name in ("base", "family", "prediction")
        if name in first and all(d.provenance.get(name) == first[name] for d, _ in parts)
    }
    return {
        **shared,
        "engine": __version__,
        "how": how,
        "parts": [_part(diff, strength) for diff, strength in parts],
    }


def _part(diff: WeightDiff, strength: float) -> dict[str, Any]:
    kept = {k: diff.provenance[k] for k in ("spec", "base", "how", "parts") if k in diff.provenance}
    return {"sha256": payload_sha256(diff), "strength": strength, **kept}


def thinned(diff: WeightDiff, share: float) -> WeightDiff:
    """Keep each layer's largest offsets, at most this share (0..1) of the layer's entries."""
    in_range("share", share, 0.0, 1.0)
    layers: dict[str, list[str]] = {}
    for key in diff.offsets:
        layers.setdefault(layer_of(key) if projection_of(key) else key, []).append(key)
    offsets: dict[str, Offset] = {}
    for keys in layers.values():
        own = {key: diff.offsets[key].entries() for key in keys}
        sizes = torch.cat([offset.values.abs() for offset in own.values()])
        count = math.ceil(share * sum(offset.numel for offset in own.values()))
        kept = torch.zeros(len(sizes), dtype=torch.bool)
        kept[sizes.sort(descending=True, stable=True).indices[:count]] = True
        parts = kept.split([len(offset.indices) for offset in own.values()])
        offsets.update({k: o.at(m) for (k, o), m in zip(own.items(), parts, strict=True)})
    ordered = {key: offsets[key] for key in diff.offsets}
    return WeightDiff(ordered, {**diff.provenance, "thinned": share}, {})


def touched(parts: Parts) -> int:
    """Count the entries that diffs move together; one that several move counts once."""
    found: dict[str, list[Offset]] = {}
    for diff, strength in parts:
        for key, offset in diff.offsets.items() if strength else ():
            found.setdefault(key, []).append(offset)
    return sum(map(_touched, found.values()))


def _touched(offsets: Sequence[Offset]) -> int:
    most = max(offset.changed for offset in offsets)
    if len(offsets) == 1 or most == offsets[0].numel:
        return most
    return len(torch.cat([offset.entries().indices for offset in offsets]).unique())


def refuse_empty(diff: WeightDiff) -> None:
    """Raise DiffError for a merged diff that changes nothing: it would say that it forgets."""
    if not diff.changed:
        raise DiffError("the merged diff changes nothing; its parts cancel, or too little is kept")


def energy(diff: WeightDiff) -> float:
    """Return the sum of squared offsets."""
    return sum(map(_energy, diff.offsets.values()))


def _energy(offset: Offset) -> float:
    if offset.factors is None or offset.sparse is not None:
        return float(offset.entries().values.double().square().sum())
    up, down = (factor.double() for factor in offset.factors)
    up = up.transpose(0, 1).flatten(1)
    return float(((up @ up.T) * (down @ down.T)).sum())  # |U D|^2, without the product itself
