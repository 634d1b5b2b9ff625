"""A model on disk, its UNet seen under ldm names; one tensor in memory at a time."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DiffError, ModelError
from ..io.safetensors import DTYPES, chunks, tensor_bytes
from ..models.checkpoint import Checkpoint, Source, finite, not_finite, open_checkpoint
from ..models.tower_keys import LazyTensor, LazyTensors
from ..models.unet_families import FAMILIES, Family, family_of
from ..models.unet_keys import KeyMap, projection_of
from .apply import Rounding, add, check_base, check_family, fingerprint_of
from .file import payload_sha256
from .label import named
from .weight_diff import WeightDiff

_ROOT = re.compile("(?:input|output|down|up)_blocks|middle_block|mid_block")
Parts = Sequence[tuple[WeightDiff, float]]


@dataclass(frozen=True)
class Copy:
    """A second copy of the UNet in the file, averaged weights for one: ldm name -> name there."""

    where: str
    names: Mapping[str, str]


@dataclass(frozen=True)
class BaseModel:
    """An open model: its files, the UNet's tensors by ldm name, and further copies of the UNet."""

    model: Checkpoint
    stock: LazyTensors
    copies: tuple[Copy, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", {key: s.shape for key, s in self.stock.items()})

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self.model.path

    @property
    def family(self) -> Family | None:
        """Tell the family, None for one without a name."""
        name = family_of(self.shapes)
        return FAMILIES[name] if name else None

    def read(self, key: str) -> Tensor:
        """Read one weight in its own dtype; raises ModelError unless it is finite."""
        return _read(self.path, self.stock[key])

    def fingerprint(self) -> str:
        """Hash the cross-attention q/k/v weights, as `diff.fingerprint` does; read once."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of((key for key in self.stock if projection_of(key)), self.read)

    def check(self, diffs: Parts, names: Sequence[str], strict: bool = False) -> list[str]:
        """Raise DiffError unless all diffs fit; return a warning for each made for another base.

        One that is in the model already is refused, unless its strength takes it back.
        """
        for (diff, _), name in zip(diffs, names, strict=True):
            check_family(diff, self.shapes, name)
        actual, before = self.fingerprint(), self.model.applied
        found = []
        for (diff, strength), name in zip(diffs, names, strict=True):
            if not refuse_again(before, diff, strength, name, str(self.path)):
                found.append(check_base(diff, actual, name, strict, known=_known(before, diff)))
        return [warning for warning in found if warning]

    def remarks(self) -> list[str]:
        """Say, before the work, what besides the UNet that programs load is patched."""
        return [
            f"{self.path} holds a second copy of the UNet under {copy.where!r}, which gets the "
            "same changes"
            for copy in self.copies
        ]

    def keys(self, source: Source) -> dict[str, tuple[str, bool]]:
        """Tell which of a file's tensors are the UNet's: ldm name, and whether of a copy."""
        mine = {stored.name: key for key, stored in self.stock.items()}
        found = {n: (mine[n], False) for n in source.header.entries if n in mine}
        return found | {n: (key, True) for copy in self.copies for key, n in copy.names.items()}

    def patched(
        self, source: Source, name: str, key: str | None, diffs: Parts, lost: Rounding
    ) -> Iterator[Any]:
        """Yield one tensor's bytes with diffs times strengths added, in order."""
        entry = source.header.entries[name]
        if key is not None and any(key in diff.offsets for diff, _ in diffs):
            yield tensor_bytes(self.patch(key, diffs, lost, source.stored(name)))
            return
        dtype = DTYPES.get(entry.dtype, torch.uint8)
        checked = key is not None and dtype.is_floating_point
        for piece in chunks(source.file, entry):
            if checked and not finite(torch.frombuffer(bytearray(piece), dtype=dtype)):
                raise ModelError(f"{source.path}: holds {not_finite(name)}")
            yield piece

    def patch(
        self, key: str, diffs: Parts, lost: Rounding, stored: LazyTensor | None = None
    ) -> Tensor:
        """Read one weight, or a copy's, and add diffs times strengths, in order."""
        weight = _read(self.path, stored or self.stock[key])
        for diff, strength in diffs:
            if key in diff.offsets:
                for _ in add(weight, diff.offsets[key], strength, lost, key):
                    pass
        return weight


def refuse_again(
    applied: Mapping[str, Any], diff: WeightDiff, strength: float, name: str, where: str
) -> bool:
    """Raise DiffError for a diff that a model's record says is in it already.

    Returns whether it is there and the strength takes it back.
    """
    there = strength_in(applied, diff)
    if there * strength > 0:
        raise DiffError(
            f"{name}: is in {where} already, at strength {there:g}; its record says so "
            "(trust-applied). Start from the model before it"
        )
    return there != 0


def strength_in(applied: Mapping[str, Any], diff: WeightDiff) -> float:
    """Return the strength at which a model's record says that a diff is in it."""
    inside = applied.get("diffs", ())
    sha256 = payload_sha256(diff) if inside else ""
    there = sum(one["strength"] for one in inside if one["sha256"] == sha256)
    return round(float(there), 6)


def _known(applied: Mapping[str, Any], diff: WeightDiff) -> str | None:
    """Say so if a diff was made for the model that this one was before others were put into it."""
    bases = {applied.get("base"), *(one.get("onto") for one in applied.get("diffs", ()))}
    expected = diff.provenance.get("base")
    if expected is None or expected not in bases:
        return None
    inside = named({"parts": applied["diffs"]}, 180)
    return f"made for the model that this was before {inside} was put into it"


@contextlib.contextmanager
def open_base(source: Path) -> Iterator[BaseModel]:
    """Open a checkpoint, a UNet file or a diffusers folder; raises ModelError for anything else."""
    with open_checkpoint(source, whole=False) as model:
        stock = dict(model.unet) if model.layout == "ldm" else _from_diffusers(source, model.unet)
        if not any(projection_of(key) for key in stock):
            raise ModelError(f"{source}: no Stable Diffusion UNet in this folder; name a model")
        copies = _copies(source, stock, model.rest)
        yield BaseModel(model, stock, copies)


def _read(path: Path, stored: LazyTensor) -> Tensor:
    weight = stored.read()
    if weight.is_floating_point() and not finite(weight):
        raise ModelError(f"{path}: holds {not_finite(stored.name)}")
    return weight


def _from_diffusers(path: Path, stock: LazyTensors) -> dict[str, LazyTensor]:
    # The family decides the translation of names, and the widths are told by names of any layout.
    family = family_of({name: stored.shape for name, stored in stock.items()})
    if family is None:
        raise ModelError(f"{path}: a diffusers UNet of no known family ({', '.join(FAMILIES)})")
    keys = KeyMap(FAMILIES[family].shape)
    try:
        return {keys.to_ldm(name): stored for name, stored in stock.items()}
    except KeyError as error:
        raise ModelError(f"{path}: a UNet of another shape than {family}: {error}") from error


def _copies(path: Path, stock: LazyTensors, rest: LazyTensors) -> tuple[Copy, ...]:
    """Find further copies of the UNet; raises ModelError for a part of one."""
    table = _spellings(stock)
    splits = [(name, match.start()) for name in rest if (match := _ROOT.search(name))]
    places = dict.fromkeys(n[:at] for n, at in splits if projection_of(table.get(n[at:], "")))
    needed = {key for key in stock if projection_of(key)}
    copies = []
    for where in places:
        below = {n: table.get(n[len(where) :]) for n in rest if n.startswith(where)}
        names = {key: name for name, key in below.items() if key}
        unlike = [n for key, n in names.items() if rest[n].shape != stock[key].shape]
        if unlike or not needed <= names.keys():
            raise ModelError(
                f"{path}: holds a part of a second UNet under {where!r} "
                f"({(unlike or sorted(names.values()))[0]}), which would keep what the diff takes "
                "away; save the model without it"
            )
        copies.append(Copy(where, names))
    return tuple(copies)


def _spellings(stock: LazyTensors) -> dict[str, str]:
    """Map the names that a UNet's weights go by to their ldm names: ldm, diffusers, no dots."""
    table = {key.replace(".", ""): key for key in stock}
    family = family_of({key: stored.shape for key, stored in stock.items()})
    if family is not None:
        keys = KeyMap(FAMILIES[family].shape)
        for key in stock:
            with contextlib.suppress(KeyError):
                table[keys.to_diffusers(key)] = key
    return table | {key: key for key in stock}
