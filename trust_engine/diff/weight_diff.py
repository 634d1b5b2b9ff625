"""The values: offsets of one weight, and of a whole UNet with where they came from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import DiffError

NAME = re.compile(r"[a-z0-9_]{1,64}(\.[a-z0-9_]{1,64}){1,16}\.(weight|bias)")
LARGEST_WEIGHT = 2**31 - 1  # entries: flat indices are int32
LARGEST_PRODUCT = 1 << 26  # entries that two factors may claim; a UNet's largest weight has 3e7
_DIGITS = 11  # significant bits of float16
_TOP = 15  # the largest value of a weight is scaled to just below 2 ** 15
_LEAST = 2.0**-13  # below, float16 would lose digits: 2 ** 28 times smaller than the largest


class Offset(Protocol):
    """What is added to one weight: single entries, and the product of two factors of low rank."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""

    @property
    def numel(self) -> int:
        """Number of entries of the whole weight."""

    @property
    def changed(self) -> int:
        """Number of entries it moves; of low rank it counts as moving all."""

    @property
    def is_zero(self) -> bool:
        """Tell whether it moves nothing."""

    @property
    def widest(self) -> float:
        """Bound how far any entry is moved; not a number where a value is none."""

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """The part of low rank, if there is one: up (o, k) or (o, k, kh, kw), down (k, d)."""

    @property
    def sparse(self) -> SparseOffset | None:
        """The part that moves single entries, if there is one."""

    def dense(self, device: torch.device | None = None) -> Tensor:
        """Return the offset as a dense float32 tensor, made on a device."""

    def entries(self) -> SparseOffset:
        """Return it entry by entry; of low rank as large as the weight, so one at a time."""

    def blocks(
        self, size: int, device: torch.device | None = None
    ) -> Iterator[tuple[Tensor | slice, Tensor]]:
        """Yield (flat indices, values) on a device, of so many entries at most, in order."""

    def times(self, strength: float) -> Offset:
        """Return strength times it."""

    def compact(self) -> Offset:
        """Round to what a file holds in 2 bytes a number; twice changes nothing."""


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

    def dense(self, device: torch.device | None = None) -> Tensor:
        """Return the offset as a dense float32 tensor, made on a device."""
        flat = torch.zeros(self.numel, dtype=torch.float32, device=device)
        flat[self.indices.to(flat.device).long()] = self.values.to(flat.device)
        return flat.view(self.shape)

    @property
    def numel(self) -> int:
        """Number of entries of the whole weight."""
        return math.prod(self.shape)

    @property
    def changed(self) -> int:
        """Number of entries it moves."""
        return len(self.indices)

    @property
    def is_zero(self) -> bool:
        """Tell whether it moves nothing."""
        return not bool(self.values.any())

    @property
    def widest(self) -> float:
        """Return how far the entry is moved that moves most."""
        return float(self.values.double().abs().max()) if len(self.values) else 0.0

    @property
    def factors(self) -> None:
        """None: it has no part of low rank."""
        return None

    @property
    def sparse(self) -> SparseOffset:
        """Return itself: all of it moves single entries."""
        return self

    def entries(self) -> SparseOffset:
        """Return itself."""
        return self

    def blocks(
        self, size: int, device: torch.device | None = None
    ) -> Iterator[tuple[Tensor | slice, Tensor]]:
        """Yield (flat int64 indices, values) on a device, of so many entries at most, in order."""
        for start in range(0, len(self.indices), size):
            some = slice(start, start + size)
            yield self.indices[some].to(device).long(), self.values[some].to(device)

    def times(self, strength: float) -> SparseOffset:
        """Return strength times it, without the entries that become zero."""
        return self.with_values(strength * self.values.double())

    def at(self, kept: Tensor) -> SparseOffset:
        """Keep the entries at these positions of `indices`, or where a mask (n,) is true."""
        return SparseOffset(self.shape, self.indices[kept], self.values[kept])

    def with_values(self, values: Tensor) -> SparseOffset:
        """Replace the values, and drop the entries that become zero."""
        there = values != 0
        return SparseOffset(self.shape, self.indices[there], values[there].float())

    def compact(self) -> SparseOffset:
        """Round to 11 significant bits, which a file holds in 2 bytes; twice changes nothing."""
        return self.with_values(_rounded(self.values)) if len(self.values) else self


@dataclass(frozen=True)
class LowRankOffset:
    """The product of two factors of rank k, and single entries on top, added to one weight.

    up (o, k) for a weight (o, d), or (o, k, kh, kw) for a convolution (o, d, kh, kw), whose d input
    channels it mixes; down (k, d); both float32. The offset is sum_k up[o, k, ...] down[k, d].
    """

    up: Tensor
    down: Tensor
    sparse: SparseOffset | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return (self.up.shape[0], self.down.shape[1], *self.up.shape[2:])

    @property
    def numel(self) -> int:
        """Number of entries of the whole weight."""
        return math.prod(self.shape)

    @property
    def rank(self) -> int:
        """Count the directions, k."""
        return len(self.down)

    @property
    def changed(self) -> int:
        """Number of entries it moves; a product of factors counts as moving all."""
        return 0 if self.is_zero else self.numel

    @property
    def is_zero(self) -> bool:
        """Tell whether it moves nothing; that directions cancel one another is not noticed."""
        none = self.sparse is None or self.sparse.is_zero
        return none and not bool(self._there().any())

    @property
    def widest(self) -> float:
        """Bound how far any entry is moved, by the largest values of each direction."""
        ups, downs = self.up.double().transpose(0, 1).flatten(1), self.down.double()
        bound = float((ups.abs().amax(1) * downs.abs().amax(1)).sum())
        return bound + (0.0 if self.sparse is None else self.sparse.widest)

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Return up and down."""
        return self.up, self.down

    def dense(self, device: torch.device | None = None) -> Tensor:
        """Return the offset as a dense float32 tensor, made on a device."""
        # TF32, which hosts may switch on for a GPU, has as many digits as compact() leaves.
        made = product(self.up.to(device), self.down.to(device))
        if self.sparse is not None:
            made += self.sparse.dense(made.device)
        return made

    def entries(self) -> SparseOffset:
        """Return it entry by entry: as large as the weight, so one at a time."""
        return SparseOffset.of(self.dense())

    def blocks(
        self, size: int, device: torch.device | None = None
    ) -> Iterator[tuple[Tensor | slice, Tensor]]:
        """Yield (stretch of the flat weight, values) on a device, of so many entries at most."""
        flat = self.dense(device).view(-1)
        for start in range(0, len(flat), size):
            values = flat[start : start + size]
            yield slice(start, start + len(values)), values

    def times(self, strength: float) -> Offset:
        """Return strength times it."""
        sparse = None if self.sparse is None else self.sparse.times(strength)
        return replace(self, up=(strength * self.up.double()).float(), sparse=sparse).tidy()

    def tidy(self) -> Offset:
        """Leave out directions and a sparse part that move nothing."""
        sparse = None if self.sparse is None or self.sparse.is_zero else self.sparse
        there = self._there()
        if not bool(there.any()):
            nothing = torch.empty(0, dtype=torch.int32), torch.empty(0)
            return sparse or SparseOffset(self.shape, *nothing)
        if bool(there.all()):
            return replace(self, sparse=sparse)
        up, down = self.up[:, there].contiguous(), self.down[there].contiguous()
        return LowRankOffset(up, down, sparse)

    def compact(self) -> Offset:
        """Round all numbers to 11 significant bits, which a file holds in 2 bytes.

        How a direction's size is split between its two factors is free, so a power of two moves
        from one to the other, such that a small direction loses no digits beside a large one.
        Twice changes nothing.
        """
        up, down = _significant(self.up), _significant(self.down)
        shift = 1 - torch.frexp(down.abs().amax(1))[1]  # the largest of each becomes 1 to 2
        down = torch.ldexp(down, shift[:, None])
        up = torch.ldexp(up, -shift.view(1, -1, *[1] * (up.ndim - 2)))
        sparse = None if self.sparse is None else self.sparse.compact()
        return LowRankOffset(_rounded(up), _rounded(down), sparse).tidy()

    def _there(self) -> Tensor:
        """Tell which directions move anything, (k,)."""
        return self.up.transpose(0, 1).flatten(1).any(1) & self.down.any(1)


def product(up: Tensor, down: Tensor) -> Tensor:
    """Multiply factors: up (o, k) or (o, k, kh, kw), down (k, d) -> (o, d) or (o, d, kh, kw)."""
    if up.ndim == 2:
        return up @ down
    return torch.einsum("okhw,kd->odhw", up, down).contiguous()


def _significant(values: Tensor) -> Tensor:
    """Round each value to 11 significant bits, halves to even, whatever its size; float64."""
    mantissa, exponent = torch.frexp(values.double())
    return torch.ldexp((mantissa * 2**_DIGITS).round(), exponent - _DIGITS)


def _rounded(values: Tensor) -> Tensor:
    """Round to float16 times one power of two; far below the largest, to zero. float32."""
    scaled, scale = halves(_significant(values))
    least = _LEAST * scale
    return (scaled * scale).masked_fill(values.double().abs() < least, 0).float()


def halves(values: Tensor) -> tuple[Tensor, float]:
    """Scale values by a power of two into float16's range: (float64 values, scale)."""
    top = float(values.abs().max())
    scale = 2.0 ** (math.frexp(top)[1] - _TOP) if math.isfinite(top) else 1.0
    return values.double() / scale, scale


def check_offset(key: str, offset: Offset, where: str) -> None:
    """Raise DiffError unless name, shape, types, order, bounds and values are sound."""
    if not NAME.fullmatch(key):
        raise DiffError(f"{where}: {ascii(key)[:80]} is no name of a UNet's weight; refused")
    if offset.factors is not None and not _sound_factors(*offset.factors):
        raise DiffError(f"{where}: the factors of {key} do not fit together; refused")
    if not 1 <= len(offset.shape) <= 4 or not 0 < offset.numel <= LARGEST_WEIGHT:
        raise DiffError(f"{where}: {key} has an impossible shape {list(offset.shape)}; refused")
    sparse = offset.sparse
    sound = sparse is None or (sparse.shape == offset.shape and _sound_entries(sparse))
    if not sound or not offset.widest <= torch.finfo(torch.float32).max:
        raise DiffError(f"{where}: entry {key} is out of bounds or not finite; refused")


def _sound_entries(offset: SparseOffset) -> bool:
    indices, values = offset.indices, offset.values
    if not (
        indices.dtype == torch.int32
        and values.dtype == torch.float32
        and indices.shape == values.shape == (len(indices),)
    ):
        return False
    if not len(indices):
        return True
    inside = int(indices[0]) >= 0 and int(indices[-1]) < offset.numel
    return inside and bool((indices[1:] > indices[:-1]).all())


def _sound_factors(up: Tensor, down: Tensor) -> bool:
    """Tell whether types and shapes are sound; more directions than inputs there cannot be."""
    return (
        up.dtype == down.dtype == torch.float32
        and up.ndim in (2, 4)
        and down.ndim == 2
        and 1 <= len(down) == up.shape[1] <= down.shape[1]
        and math.prod((len(up), down.shape[1], *up.shape[2:])) <= LARGEST_PRODUCT
    )


@dataclass(frozen=True)
class WeightDiff:
    """Offsets under ldm names; where they came from; and what others noted later.

    provenance: spec, engine, base (fingerprint), family, prediction, report of the run;
    notes: author, licence, notes, audit. They may change without changing the diff.
    """

    offsets: Mapping[str, Offset]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        """Number of entries the diff moves."""
        return sum(offset.changed for offset in self.offsets.values())

    @property
    def directions(self) -> int:
        """Number of directions of low rank, over all weights."""
        return sum(len(o.factors[1]) for o in self.offsets.values() if o.factors is not None)

    @property
    def share(self) -> float:
        """Share of all entries of the weights it touches that the diff moves, 0..1."""
        return self.changed / max(1, sum(offset.numel for offset in self.offsets.values()))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each weight it touches."""
        return {key: offset.shape for key, offset in self.offsets.items()}

    def compact(self) -> WeightDiff:
        """Round to 11 significant bits: a file takes 3 bytes an entry, not 5, and 2 a factor's."""
        offsets = {key: offset.compact() for key, offset in self.offsets.items()}
        return WeightDiff(offsets, self.provenance, self.notes)
