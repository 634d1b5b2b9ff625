"""A model file on disk, its UNet seen under ldm names; one tensor in memory at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from ..errors import ModelError
from ..io.files import open_regular
from ..io.safetensors import (
    DTYPES,
    Entry,
    Header,
    chunks,
    read_header,
    read_tensor,
    tensor_bytes,
)
from ..models.keys import LDM_PREFIX, KeyMap, projection_of
from ..models.unet_families import FAMILIES, Family, family_of
from .apply import Rounding, add, check_base, check_family, fingerprint_of
from .weight_diff import WeightDiff

LONGEST_HEADER = 64 << 20
_PREFIXES = (LDM_PREFIX, "diffusion_model.", "")
_ROOTS = {"input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"}
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
Parts = Sequence[tuple[WeightDiff, float]]


@dataclass(frozen=True)
class BaseModel:
    """An open model file: its header, and the UNet's tensors, ldm name -> name in the file."""

    path: Path
    file: BinaryIO
    header: Header
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        shapes = {key: self.header.entries[name].shape for key, name in self.names.items()}
        object.__setattr__(self, "shapes", shapes)

    @property
    def family(self) -> Family | None:
        """Tell the family, None for one without a name."""
        name = family_of(self.shapes)
        return FAMILIES[name] if name else None

    def read(self, key: str) -> Tensor:
        """Read one weight in its own dtype."""
        name = self.names[key]
        entry = self.header.entries[name]
        scale = name.removesuffix("weight") + "scale_weight"
        if entry.dtype not in DTYPES or scale in self.header.entries:
            raise ModelError(
                f"{self.path}: {key} is stored as scaled or unknown {entry.dtype}; "
                "take the float16 or bfloat16 version of the model"
            )
        return read_tensor(self.file, entry)

    def fingerprint(self) -> str:
        """Hash the cross-attention q/k/v weights, as `diff.fingerprint` does."""
        return fingerprint_of((key for key in self.names if projection_of(key)), self.read)

    def check(self, diffs: Parts, names: Sequence[str], strict: bool = False) -> list[str]:
        """Raise DiffError unless all diffs fit; return a warning for each made for another base."""
        for (diff, _), name in zip(diffs, names, strict=True):
            check_family(diff, self.shapes, name)
        actual = self.fingerprint()
        found = [check_base(d, actual, n, strict) for (d, _), n in zip(diffs, names, strict=True)]
        return [warning for warning in found if warning]

    def patched(self, key: str | None, entry: Entry, diffs: Parts, lost: Rounding) -> Iterator[Any]:
        """Yield one tensor's bytes with diffs times strengths added, in order."""
        if key is None or not any(key in diff.offsets for diff, _ in diffs):
            yield from chunks(self.file, entry)
        else:
            yield tensor_bytes(self.patch(key, diffs, lost))

    def patch(self, key: str, diffs: Parts, lost: Rounding) -> Tensor:
        """Read one weight and add diffs times strengths, in order."""
        weight = self.read(key)
        for diff, strength in diffs:
            if key in diff.offsets:
                for _ in add(weight, diff.offsets[key], strength, lost, key):
                    pass
        return weight


@contextlib.contextmanager
def open_base(source: Path) -> Iterator[BaseModel]:
    """Open a checkpoint, a UNet file or a diffusers folder; raises ModelError for anything else."""
    path = _weights_of(source)
    with open_regular(path, ModelError) as file:
        header = read_header(file, str(path), ModelError, LONGEST_HEADER)
        yield BaseModel(path, file, header, _unet_names(path, header))


def _weights_of(source: Path) -> Path:
    if not source.is_dir():
        return source
    for folder in (source, source / "unet"):
        for name in _WEIGHTS:
            if (folder / name).is_file():
                return folder / name
    raise ModelError(f"{source}: no {_WEIGHTS[0]} in this folder or its unet/; name a model file")


def _unet_names(path: Path, header: Header) -> dict[str, str]:
    for prefix in _PREFIXES:
        there = f"{prefix}input_blocks."
        if any(name.startswith(there) and projection_of(name) for name in header.entries):
            named = {n[len(prefix) :]: n for n in header.entries if n.startswith(prefix)}
            return {key: n for key, n in named.items() if prefix or key.split(".")[0] in _ROOTS}
    if any(name.startswith("down_blocks.") and projection_of(name) for name in header.entries):
        return _from_diffusers(path, header)
    raise ModelError(
        f"{path}: no Stable Diffusion UNet in this file; name a checkpoint of SD 1.x, 2.x or SDXL"
    )


def _from_diffusers(path: Path, header: Header) -> dict[str, str]:
    # The family decides the translation of names, and the widths are told by names of any layout.
    family = family_of({name: entry.shape for name, entry in header.entries.items()})
    if family is None:
        raise ModelError(f"{path}: a diffusers UNet of no known family ({', '.join(FAMILIES)})")
    keys = KeyMap(FAMILIES[family].shape)
    try:
        return {keys.to_ldm(name): name for name in header.entries}
    except KeyError as error:
        raise ModelError(f"{path}: a UNet of another shape than {family}: {error}") from error
