"""Proof by effect: a diff counts as applied when it is found in the weights that will draw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from trust_engine.errors import DiffError

from .host import Part

ENTRIES = 16  # of a weight
FAINT = 0.01  # of the largest offset: beside it, smaller ones are not looked at
SURE = (0.5, 1.5)  # a change that is there measures 1 but for rounding; none 0, one put on twice 2


class Weights(Protocol):
    """What a host draws with, as the host's own functions make it."""

    def drawn(self, key: str) -> Tensor:
        """Return a weight as the UNet will compute with it."""

    def without(self, key: str) -> Tensor:
        """Return what it would be without our diffs: the checkpoint's, under the user's LoRAs."""

    def way(self, key: str) -> str:
        """Name the way in which changes come to it, such as beforehand or at each use.

        "" for a weight that cannot be read back.
        """


@torch.no_grad()
def prove(weights: Weights, parts: Sequence[Part], host: str) -> None:
    """Raise DiffError unless each diff is in the weights that will draw, once and at its strength.

    weights: the UNet as it is about to compute; host: the web UI's name for the message.
    """
    for part in parts:
        keys = _looked_at(weights, part)
        if not keys and part.strength and part.diff.changed:
            raise DiffError(f"{part.name}: none of its changes can be read back in {host}")
        for key in keys:
            there = _there(weights, parts, part, key)
            if not SURE[0] < there < SURE[1]:  # also when it is no number
                raise DiffError(
                    f"{part.name}: read back from {key}, {there:.0%} of its change is in the "
                    f"weights that {host} would draw with, instead of all of it; "
                    "update the web UI and this extension, and switch off what else changes weights"
                )


def _looked_at(weights: Weights, part: Part) -> list[str]:
    """Choose a diff's first and last weight of each way in which changes come to weights."""
    ways: dict[str, list[str]] = defaultdict(list)
    for key, offset in part.diff.offsets.items():
        if part.strength and not offset.is_zero:
            ways[weights.way(key)].append(key)
    ways.pop("", None)
    return [key for keys in ways.values() for key in dict.fromkeys((keys[0], keys[-1]))]


def _there(weights: Weights, parts: Sequence[Part], part: Part, key: str) -> float:
    """Measure how much of a diff's change is in a weight: 1 all of it, 0 nothing."""
    offset = part.diff.offsets[key].entries()
    index, wanted = offset.indices.long(), part.strength * offset.values.double()
    before = _at(weights.without(key), index)
    for other in parts:
        if other is not part and key in other.diff.offsets:
            before += other.strength * _at(other.diff.offsets[key].dense(), index)
    # Where the weight itself is small beside the offset, no rounding hides the offset.
    clear = wanted.abs() / (wanted.abs() + before.abs() + FAINT * wanted.abs().max())
    best = clear.topk(min(ENTRIES, len(clear))).indices
    change = _at(weights.drawn(key), index[best]) - before[best]
    return float((wanted[best] * change).sum() / wanted[best].square().sum())


def _at(weight: Tensor, index: Tensor) -> Tensor:
    """Take entries (n,) of a weight by flat index, as float64 on the CPU."""
    return weight.detach().flatten()[index.to(weight.device)].to("cpu", torch.float64)
