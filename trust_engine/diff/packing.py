"""How a file holds what is added to one weight: which tensors, and what its label claims of them.

The format is described in docs/reference/diff-format.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DiffError
from ..io.safetensors import Buffer, Entry, as_tensor
from .weight_diff import (
    LARGEST_PRODUCT,
    LowRankOffset,
    Offset,
    SparseOffset,
    check_offset,
    halves,
)

ENTRIES = ("gaps", "values")
FACTORS = ("down", "up")
LARGEST_EXPONENT = 200
SKIP = 255  # a gap byte that moves on by 255 entries and marks none
_SPARSE = {"shape", "exponent"}
_LOW_RANK = {"shape", "rank", *FACTORS}
_NUMBERS = {"F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class Packed:
    """One weight's claim, for the label, and its tensors by the last part of their names."""

    claim: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def pack(offset: Offset) -> Packed:
    """Pack an offset; what is loaded again is the same to the bit."""
    claim: dict[str, Any] = {"shape": list(offset.shape)}
    tensors: dict[str, Tensor] = {}
    sparse = offset.sparse
    if sparse is not None and (offset.factors is None or len(sparse.indices)):
        tensors["gaps"] = pack_indices(sparse.indices)
        claim["exponent"], tensors["values"] = _pack_numbers(sparse.values)
    if offset.factors is not None:
        up, down = offset.factors
        claim["rank"] = len(down)
        claim["down"], tensors["down"] = _pack_numbers(down)
        claim["up"], tensors["up"] = _pack_numbers(up)
    return Packed(claim, tensors)


def parts_of(claim: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the tensors of a weight, in the order in which they are hashed."""
    entries = ENTRIES if "exponent" in claim else ()
    return (*entries, *FACTORS) if "rank" in claim else entries


def sound_claim(claim: Any) -> bool:
    """Tell whether what a label says of a weight is complete, and of possible size."""
    if not isinstance(claim, dict) or set(claim) not in (_SPARSE, _LOW_RANK, _SPARSE | _LOW_RANK):
        return False
    shape = claim["shape"]
    if not isinstance(shape, list) or not all(type(n) is int and 0 < n < 2**31 for n in shape):
        return False
    exponents = [claim[name] for name in ("exponent", *FACTORS) if name in claim]
    if not all(type(n) is int and abs(n) <= LARGEST_EXPONENT for n in exponents):
        return False
    return "rank" not in claim or _possible(shape, claim["rank"])


def _possible(shape: list[int], rank: Any) -> bool:
    """Tell whether a product of factors may have this shape and rank."""
    return (
        len(shape) in (2, 4)
        and math.prod(shape) <= LARGEST_PRODUCT
        and type(rank) is int
        and 0 < rank <= shape[1]
    )


def fitting(claim: Mapping[str, Any], entries: Mapping[str, Entry | None]) -> bool:
    """Tell whether the tensors that a file's header lists are those of a weight's claim."""
    there = {part: entry for part, entry in entries.items() if entry is not None}
    if set(there) != set(parts_of(claim)):
        return False
    return ("rank" not in claim or _fitting_factors(claim, there)) and (
        "exponent" not in claim or _fitting_entries(claim, there)
    )


def _fitting_entries(claim: Mapping[str, Any], there: Mapping[str, Entry]) -> bool:
    gaps, values = there["gaps"], there["values"]
    numel = math.prod(claim["shape"])
    return (
        gaps.dtype == "U8"
        and values.dtype in _NUMBERS
        and len(gaps.shape) == len(values.shape) == 1
        and values.numel <= gaps.numel <= numel + numel // SKIP
        and (values.numel > 0 or "rank" not in claim)  # there is one way to write nothing
    )


def _fitting_factors(claim: Mapping[str, Any], there: Mapping[str, Entry]) -> bool:
    (out, channels, *taps), rank = claim["shape"], claim["rank"]
    return (
        there["down"].dtype in _NUMBERS
        and there["up"].dtype in _NUMBERS
        and there["down"].shape == (rank, channels)
        and there["up"].shape == (out, rank, *taps)
    )


def unpack(
    key: str,
    claim: Mapping[str, Any],
    entries: Mapping[str, Entry],
    contents: Mapping[str, Buffer],
    where: str,
) -> Offset:
    """Unpack a weight whose claim and header are sound; raises DiffError for unsound numbers."""
    shape = tuple(claim["shape"])

    def numbers(part: str, exponent: int) -> Tensor:
        entry = entries[part]
        packed = as_tensor(contents[part], _NUMBERS[entry.dtype], entry.shape)
        return (packed.double() * 2.0**exponent).float()

    sparse = None
    if "exponent" in claim:
        gaps = as_tensor(contents["gaps"], torch.uint8, (-1,))
        indices = unpack_indices(gaps)
        last = int(indices[-1]) if len(indices) else -1
        if last >= math.prod(shape) or bool((gaps[-1:] == SKIP).any()):
            raise DiffError(f"{where}: entry {key} is out of bounds or not finite; refused")
        sparse = SparseOffset(shape, indices.int(), numbers("values", claim["exponent"]))
    offset: Offset | None = sparse
    if "rank" in claim:
        up, down = numbers("up", claim["up"]), numbers("down", claim["down"])
        offset = LowRankOffset(up, down, sparse)
    assert offset is not None  # a claim names one of the two
    check_offset(key, offset, where)
    return offset


def _pack_numbers(values: Tensor) -> tuple[int, Tensor]:
    """Return (exponent, values) as float16 where that loses nothing, else as float32."""
    if bool(values.any()):
        scaled, scale = halves(values)
        half = scaled.half()
        if torch.equal(half.double(), scaled):
            return round(math.log2(scale)), half
    return 0, values.contiguous()


def pack_indices(indices: Tensor) -> Tensor:
    """Encode rising indices as the gaps between them, a byte each, SKIP for 255 of a long one."""
    if not len(indices):
        return torch.empty(0, dtype=torch.uint8)
    gaps = indices.long().diff(prepend=torch.tensor([-1])) - 1
    ends = (gaps // SKIP + 1).cumsum(0) - 1
    packed = torch.full((int(ends[-1]) + 1,), SKIP, dtype=torch.uint8)
    packed[ends] = (gaps % SKIP).to(torch.uint8)
    return packed


def unpack_indices(gaps: Tensor) -> Tensor:
    """Decode to int64 indices, rising by construction."""
    marks = gaps != SKIP
    return (gaps.long() + marks).cumsum(0)[marks] - 1
