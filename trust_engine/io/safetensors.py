"""The safetensors container: read with distrust, written tensor by tensor with stable bytes."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import DiffError, TrustError
from ..strict_json import without_repeats
from .files import atomic_file, refuse_pickle

CHUNK = 1 << 20
LARGEST_SIZE = 2**31 - 1
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: safetensors' name of its dtype, shape, and its bytes' place."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.end - self.begin

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says of itself: tensors by name, in the file's order, and its metadata."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_header(
    file: BinaryIO, name: str, kind: type[TrustError], longest: int, known: bool = False
) -> Header:
    """Read and check all a header claims against the file's size, before anything is allocated.

    longest: bytes the header may take; known: refuse dtypes that this engine cannot read.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(8)
    refuse_pickle(name, head, kind)
    length = int.from_bytes(head, "little")
    if size < 8 or length > size - 8:
        raise kind(f"{name}: not a safetensors file, or cut short")
    if length > longest:
        raise kind(f"{name}: its header takes {length:,} bytes, more than {longest:,}; refused")
    try:
        claims = json.loads(
            file.read(length).decode(),
            object_pairs_hook=without_repeats,
            parse_constant=_no_number,
        )
        metadata = claims.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata must be texts")
        entries = {key: _entry(key, claim, 8 + length, known) for key, claim in claims.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise kind(f"{name}: not a safetensors file, or damaged ({_brief(error)})") from error
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_places(entries, 8 + length, size, name, kind)
    return Header(entries, metadata)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _entry(key: str, claim: Any, start: int, known: bool) -> Entry:
    dtype, (begin, end) = claim["dtype"], claim["data_offsets"]
    shape = tuple(claim["shape"])
    numbers = (*shape, begin, end)
    if len(shape) > 8 or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"{_brief(key)} has no proper shape or place")
    if any(n > LARGEST_SIZE for n in shape) or begin > end:
        raise ValueError(f"{_brief(key)} is too large")
    if dtype not in DTYPES:
        if known or not isinstance(dtype, str):
            raise ValueError(f"{_brief(key)} is of type {_brief(dtype)}")
    elif math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
        raise ValueError(f"{_brief(key)} has another size than its shape says")
    return Entry(dtype, shape, start + begin, start + end)


def _check_places(
    entries: Mapping[str, Entry], start: int, size: int, name: str, kind: type[TrustError]
) -> None:
    at = start
    for key, entry in entries.items():
        if entry.begin != at:
            raise kind(f"{name}: damaged (the bytes of {_brief(key)} overlap or leave a gap)")
        at = entry.end
    if at != size:
        what = "cut short" if at > size else "longer than it says"
        raise kind(f"{name}: {what} ({size:,} bytes instead of {at:,}); the file is damaged")


def _brief(what: object) -> str:
    text = ascii(what) if isinstance(what, str) else ascii(str(what))[1:-1]
    return text if len(text) <= 90 else f"{text[:87]}..."


Buffer = bytearray | mmap.mmap


def read_bytes(file: BinaryIO, entry: Entry) -> Buffer:
    """Read one tensor's bytes, all of them or OSError."""
    # Large ones in pages of their own, which go back to the system at once: the allocator would
    # keep them, cut a little off for other uses, and have no room for the next one of their size.
    content = bytearray(entry.size) if entry.size < CHUNK else mmap.mmap(-1, entry.size)
    view, at = memoryview(content), 0
    file.seek(entry.begin)
    while at < entry.size:
        count = file.readinto(view[at : at + CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise OSError("it became shorter while it was read")
        at += count
    return content


def read_tensor(file: BinaryIO, entry: Entry) -> Tensor:
    """Read one tensor in its own dtype."""
    return as_tensor(read_bytes(file, entry), DTYPES[entry.dtype], entry.shape)


def as_tensor(content: Buffer, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """See bytes as a tensor, without a copy."""
    if not content:
        return torch.empty(0, dtype=dtype).view(tuple(shape))
    return torch.frombuffer(content, dtype=dtype).view(tuple(shape))


def chunks(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """Read one tensor's bytes piece by piece."""
    at = entry.begin
    while at < entry.end:
        file.seek(at)
        piece = file.read(min(CHUNK, entry.end - at))
        if not piece:
            raise OSError("it became shorter while it was read")
        at += len(piece)
        yield piece


def tensor_bytes(tensor: Tensor) -> memoryview:
    """See a tensor's bytes, without a copy if it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy() if flat.numel() else b"")  # type: ignore[arg-type]


Plan = Mapping[str, tuple[str, tuple[int, ...], int]]
Produce = Callable[[str], Iterable[bytes | bytearray | memoryview]]


def planned(tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> Plan:
    """Order tensors as readers like them, widest dtype first, then by name."""
    wide = sorted(tensors.items(), key=lambda item: (-item[1][0].itemsize, item[0]))
    return {
        key: (NAMES[dtype], tuple(shape), math.prod(shape) * dtype.itemsize)
        for key, (dtype, shape) in wide
    }


def header_bytes(plan: Plan, metadata: Mapping[str, str]) -> bytes:
    """Lay out a header for {name: (dtype, shape, bytes)}; equal content gives equal bytes."""
    claims: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for key, (dtype, shape, size) in plan.items():
        claims[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(claims, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(path: Path, plan: Plan, produce: Produce, metadata: Mapping[str, str]) -> None:
    """Write a file whole or not at all, one tensor in memory at a time."""
    with atomic_file(path) as file:
        file.write(header_bytes(plan, metadata))
        for key, (_, _, size) in plan.items():
            for piece in produce(key):
                file.write(piece)
                size -= len(piece)
                del piece  # or it would stay while the next tensor is read
            if size:
                raise DiffError(f"{path}: {key} came out {-size:+} bytes longer; nothing was saved")


def write_all(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors that are in memory."""
    plan = planned({key: (tensor.dtype, tensor.shape) for key, tensor in tensors.items()})
    write_tensors(path, plan, lambda key: (tensor_bytes(tensors[key]),), metadata)
