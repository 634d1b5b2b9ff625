"""How two diffs get along: what both move, and whether they pull it the same way."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .arithmetic import Parts, check_alike
from .weight_diff import WeightDiff


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


@dataclass
class _Tally:
    """Sums over the entries that two diffs both move."""

    shared: int = 0
    opposed: int = 0
    moved: float = 0.0
    left: float = 0.0
    product: float = 0.0
    squares: tuple[float, float] = (0.0, 0.0)
    chance: float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count entries (n,) of one weight, what the one and the other add to them."""
        self.shared += len(x)
        self.opposed += int((x * y < 0).sum())
        self.moved += float(x.abs().sum() + y.abs().sum())
        self.left += float((x + y).abs().sum())
        self.product += float(x @ y)
        self.squares = self.squares[0] + float(x @ x), self.squares[1] + float(y @ y)

    def overlap(self, first: int, second: int) -> Overlap:
        """Sum up, for diffs that move `first` and `second` entries in all."""
        length = math.sqrt(self.squares[0] * self.squares[1])
        return Overlap(
            shared=self.shared,
            of_first=self.shared / max(1, first),
            of_second=self.shared / max(1, second),
            by_chance=self.chance / max(1, first),
            opposed=self.opposed / self.shared if self.shared else 0.0,
            cosine=self.product / length if length else 0.0,
            cancelled=1 - self.left / self.moved if self.moved else 0.0,
        )


def overlap(a: WeightDiff, b: WeightDiff) -> Overlap:
    """Compare two diffs of one family entry by entry, one weight at a time."""
    check_alike([a, b])
    tally = _Tally()
    for key in (key for key in a.offsets if key in b.offsets):
        one, two = a.offsets[key].entries(), b.offsets[key].entries()
        tally.chance += len(one.indices) * len(two.indices) / one.numel
        mine, yours = torch.isin(one.indices, two.indices), torch.isin(two.indices, one.indices)
        tally.add(one.values[mine].double(), two.values[yours].double())
    return tally.overlap(a.changed, b.changed)


def overlap_with_rest(parts: Parts) -> list[Overlap]:
    """Compare each of many diffs, times its strength, with the sum of all the others.

    One pass over the entries that any of them moves, where pairs would take one for each two.
    """
    check_alike([diff for diff, _ in parts])
    tallies, rest_moved = [_Tally() for _ in parts], [0] * len(parts)
    for key in dict.fromkeys(key for diff, _ in parts for key in diff.offsets):
        there = [
            (i, d.offsets[key].entries(), s) for i, (d, s) in enumerate(parts) if key in d.offsets
        ]
        union, touched = torch.cat([o.indices for _, o, _ in there]).unique(return_counts=True)
        total = torch.zeros(len(union), dtype=torch.float64)
        for _, offset, strength in there:
            places = torch.searchsorted(union, offset.indices)
            total[places] += strength * offset.values.double()
        for i, offset, strength in there:
            at = torch.searchsorted(union, offset.indices)
            shared = touched[at] > 1
            mine = strength * offset.values.double()[shared]
            tallies[i].add(mine, total[at][shared] - mine)
            others = len(union) - len(at) + int(shared.sum())
            rest_moved[i] += others
            tallies[i].chance += len(at) * others / offset.numel
        for i in set(range(len(parts))) - {i for i, _, _ in there}:
            rest_moved[i] += len(union)
    return [
        tally.overlap(diff.changed, rest)
        for tally, (diff, _), rest in zip(tallies, parts, rest_moved, strict=True)
    ]
