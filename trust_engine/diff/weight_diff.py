"""The values: sparse offsets of one weight, and of a whole UNet with where they came from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import DiffError

NAME = re.compile(r"[a-z0-9_]{1,64}(\.[a-z0-9_]{1,64}){1,16}\.(weight|bias)")
LARGEST_WEIGHT = 2**31 - 1  # entries: flat indices are int32
_TOP = 15  # the largest value of a weight is scaled to just below 2 ** 15
_LEAST = 2.0**-13  # below, float16 would lose digits: 2 ** 28 times smaller than the largest


@dataclass(frozen=True)
class SparseOffset:
    """Offsets of some entries of one weight: flat indices (n,) int32, values (n,) float32."""

    shape: tuple[int, ...]
    indices: Tensor
    values: Tensor

    @classmethod
    def of(cls, dense: Tensor) -> SparseOffset:
        """Keep the non-zero entries of a dense offset."""
        flat = dense.detach().flatten().float().cpu()
        indices = flat.nonzero().flatten()
        return cls(tuple(dense.shape), indices.int(), flat[indices])

    def dense(self) -> Tensor:
        """Return the offset as a dense float32 tensor."""
        flat = torch.zeros(self.numel, dtype=torch.float32)
        flat[self.indices.long()] = self.values
        return flat.view(self.shape)

    @property
    def numel(self) -> int:
        """Number of entries of the whole weight."""
        return math.prod(self.shape)

    def at(self, kept: Tensor) -> SparseOffset:
        """Keep the entries at these positions of `indices`, or where a mask (n,) is true."""
        return SparseOffset(self.shape, self.indices[kept], self.values[kept])

    def with_values(self, values: Tensor) -> SparseOffset:
        """Replace the values, and drop the entries that become zero."""
        there = values != 0
        return SparseOffset(self.shape, self.indices[there], values[there].float())

    def compact(self) -> SparseOffset:
        """Round to 11 significant bits, which a file holds in 2 bytes; twice changes nothing."""
        if not len(self.values):
            return self
        scaled, scale = halves(self.values)
        scaled = scaled.masked_fill(scaled.abs() < _LEAST, 0)
        return self.with_values((scaled.half().double() * scale).float())


def halves(values: Tensor) -> tuple[Tensor, float]:
    """Scale values (n,) by a power of two into float16's range: (float64 values, scale)."""
    top = float(values.abs().max())
    scale = 2.0 ** (math.frexp(top)[1] - _TOP) if math.isfinite(top) else 1.0
    return values.double() / scale, scale


def check_offset(key: str, offset: SparseOffset, where: str) -> None:
    """Raise DiffError unless name, shape, types, order, bounds and values are sound."""
    indices, values = offset.indices, offset.values
    if not NAME.fullmatch(key):
        raise DiffError(f"{where}: {ascii(key)[:80]} is no name of a UNet's weight; refused")
    if not 1 <= len(offset.shape) <= 4 or not 0 < offset.numel <= LARGEST_WEIGHT:
        raise DiffError(f"{where}: {key} has an impossible shape {list(offset.shape)}; refused")
    proper = (
        indices.dtype == torch.int32
        and values.dtype == torch.float32
        and indices.shape == values.shape == (len(indices),)
    )
    inside = proper and (
        len(indices) == 0
        or bool(
            (int(indices[0]) >= 0)
            and (int(indices[-1]) < offset.numel)
            and (indices[1:] > indices[:-1]).all()
        )
    )
    if not inside or not bool(values.isfinite().all()):
        raise DiffError(f"{where}: entry {key} is out of bounds or not finite; refused")


@dataclass(frozen=True)
class WeightDiff:
    """Sparse offsets under ldm names; where they came from; and what others noted later.

    provenance: spec, engine, base (fingerprint), family, prediction, report of the run;
    notes: author, licence, notes, audit. They may change without changing the diff.
    """

    offsets: Mapping[str, SparseOffset]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        """Number of entries the diff moves."""
        return sum(len(offset.indices) for offset in self.offsets.values())

    @property
    def share(self) -> float:
        """Share of all entries of the weights it touches that the diff moves, 0..1."""
        return self.changed / max(1, sum(offset.numel for offset in self.offsets.values()))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each weight it touches."""
        return {key: offset.shape for key, offset in self.offsets.items()}

    def compact(self) -> WeightDiff:
        """Round the values to 11 significant bits: a file then takes 3 bytes an entry, not 5."""
        offsets = {key: offset.compact() for key, offset in self.offsets.items()}
        return WeightDiff(offsets, self.provenance, self.notes)
