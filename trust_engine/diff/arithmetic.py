"""Diffs as vectors: add, subtract, scale, merge, thin out, and see how two get along."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .. import __version__
from ..errors import DiffError, SpecError
from ..models.keys import layer_of, projection_of
from ..phrases import plain
from ..settings import in_range
from ..spec import ConceptSpec, UnlearnSpec, contradiction
from .file import payload_sha256
from .sampling import sampling_of
from .weight_diff import SparseOffset, WeightDiff

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


def _combined(parts: Sequence[tuple[SparseOffset, float]], how: How) -> SparseOffset:
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
    _check_alike([diff for diff, _ in parts])
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


def _check_alike(diffs: Sequence[WeightDiff]) -> None:
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
    offsets: dict[str, SparseOffset] = {}
    for keys in layers.values():
        sizes = torch.cat([diff.offsets[key].values.abs() for key in keys])
        count = math.ceil(share * sum(diff.offsets[key].numel for key in keys))
        kept = torch.zeros(len(sizes), dtype=torch.bool)
        kept[sizes.sort(descending=True, stable=True).indices[:count]] = True
        parts = kept.split([len(diff.offsets[key].indices) for key in keys])
        offsets.update({k: diff.offsets[k].at(m) for k, m in zip(keys, parts, strict=True)})
    ordered = {key: offsets[key] for key in diff.offsets}
    return WeightDiff(ordered, {**diff.provenance, "thinned": share}, {})


def touched(parts: Parts) -> int:
    """Count the entries that diffs move together; one that several move counts once."""
    found: dict[str, list[Tensor]] = {}
    for diff, strength in parts:
        for key, offset in diff.offsets.items() if strength else ():
            found.setdefault(key, []).append(offset.indices)
    return sum(len(torch.cat(indices).unique()) for indices in found.values())


def refuse_empty(diff: WeightDiff) -> None:
    """Raise DiffError for a merged diff that changes nothing: it would say that it forgets."""
    if not diff.changed:
        raise DiffError("the merged diff changes nothing; its parts cancel, or too little is kept")


def energy(diff: WeightDiff) -> float:
    """Return the sum of squared offsets."""
    return sum(float(o.values.double().square().sum()) for o in diff.offsets.values())


@dataclass(frozen=True)
class Overlap:
    """How far two diffs touch the same entries, and whether they pull them the same way there.

    shared: entries both move; of_first, of_second: as shares of what each moves; by_chance: the
    share of the first that two blind choices of these sizes would have in common; opposed: share
    of the shared that they move in opposite directions; cosine: over the shared, -1..1; cancelled:
    share of the shared movement that is lost in the sum.
    """

    shared: int
    of_first: float
    of_second: float
    by_chance: float
    opposed: float
    cosine: float
    cancelled: float

    @property
    def verdict(self) -> str:
        """Say it in words."""
        if max(self.of_first, self.of_second) < 0.01:
            return "they hardly touch the same neurons"
        if self.cosine < -0.2:
            return "they fight over the neurons they share"
        if self.cosine > 0.2:
            return "they pull the neurons they share the same way"
        return "they share neurons, and neither help nor fight each other there"

    def as_dict(self) -> dict[str, Any]:
        """Return all figures and the verdict."""
        return {**asdict(self), "verdict": self.verdict}


def overlap(a: WeightDiff, b: WeightDiff) -> Overlap:
    """Compare two diffs of one family entry by entry."""
    _check_alike([a, b])
    pairs, chance = [], 0.0
    for key in a.offsets.keys() & b.offsets.keys():
        one, two = a.offsets[key], b.offsets[key]
        chance += len(one.indices) * len(two.indices) / one.numel
        mine, yours = torch.isin(one.indices, two.indices), torch.isin(two.indices, one.indices)
        pairs.append(torch.stack([one.values[mine], two.values[yours]]).double())
    both = torch.cat(pairs, 1) if pairs else torch.zeros(2, 0, dtype=torch.float64)
    return _overlap(both, a.changed, b.changed, chance)


def overlap_with_rest(parts: Parts) -> list[Overlap]:
    """Compare each of many diffs, times its strength, with the sum of all the others.

    One pass over the entries that any of them moves, where pairs would take one for each two.
    """
    _check_alike([diff for diff, _ in parts])
    found: list[list[Tensor]] = [[] for _ in parts]
    rest_moved, chance = [0] * len(parts), [0.0] * len(parts)
    for key in dict.fromkeys(key for diff, _ in parts for key in diff.offsets):
        there = [(i, d.offsets[key], s) for i, (d, s) in enumerate(parts) if key in d.offsets]
        union, touched = torch.cat([o.indices for _, o, _ in there]).unique(return_counts=True)
        total = torch.zeros(len(union), dtype=torch.float64)
        for _, offset, strength in there:
            places = torch.searchsorted(union, offset.indices)
            total[places] += strength * offset.values.double()
        for i, offset, strength in there:
            at = torch.searchsorted(union, offset.indices)
            shared = touched[at] > 1
            mine = strength * offset.values.double()[shared]
            found[i].append(torch.stack([mine, total[at][shared] - mine]))
            others = len(union) - len(at) + int(shared.sum())
            rest_moved[i] += others
            chance[i] += len(at) * others / offset.numel
        for i in set(range(len(parts))) - {i for i, _, _ in there}:
            rest_moved[i] += len(union)
    empty = torch.zeros(2, 0, dtype=torch.float64)
    return [
        _overlap(torch.cat([empty, *pairs], 1), diff.changed, rest, by_chance)
        for pairs, (diff, _), rest, by_chance in zip(found, parts, rest_moved, chance, strict=True)
    ]


def _overlap(both: Tensor, first: int, second: int, chance: float) -> Overlap:
    """Sum up what two diffs, that move `first` and `second` entries, do where both move (2, n)."""
    x, y = both
    moved, left = float(both.abs().sum()), float((x + y).abs().sum())
    length = float(x.norm() * y.norm())
    return Overlap(
        shared=len(x),
        of_first=len(x) / max(1, first),
        of_second=len(x) / max(1, second),
        by_chance=chance / max(1, first),
        opposed=float((x * y < 0).double().mean()) if len(x) else 0.0,
        cosine=float(x @ y) / length if length else 0.0,
        cancelled=1 - left / moved if moved else 0.0,
    )
