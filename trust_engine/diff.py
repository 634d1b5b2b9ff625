"""A weight diff: sparse offsets of q/k/v entries, where they came from, and how to apply them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoiser, projections
from .errors import DiffError
from .files import open_safetensors, write_atomically

FORMAT = "trust-diff"
FORMAT_VERSION = 1


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
        flat = torch.zeros(self.numel)
        flat[self.indices.long()] = self.values
        return flat.view(self.shape)

    @property
    def numel(self) -> int:
        """Number of entries of the whole weight."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class WeightDiff:
    """Sparse offsets under ldm names, and provenance: spec, engine, base fingerprint, report."""

    offsets: Mapping[str, SparseOffset]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        """Number of entries the diff moves."""
        return sum(len(offset.indices) for offset in self.offsets.values())

    @property
    def share(self) -> float:
        """Share of all q/k/v entries that the diff moves, 0..1."""
        return self.changed / max(1, sum(offset.numel for offset in self.offsets.values()))


def fingerprint(denoiser: Denoiser) -> str:
    """Hash the q/k/v weights rounded to float16: float32 and float16 copies agree."""
    digest = hashlib.sha256()
    for key, weight in sorted(projections(denoiser).items()):
        digest.update(f"{key}{tuple(weight.shape)}".encode())
        digest.update(weight.to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def save_diff(diff: WeightDiff, path: Path) -> None:
    """Write the diff; the bytes depend on its content only."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for key, offset in diff.offsets.items():
        tensors[f"{key}.indices"] = offset.indices.contiguous()
        tensors[f"{key}.values"] = offset.values.contiguous()
    shapes = {key: list(offset.shape) for key, offset in diff.offsets.items()}
    label = {
        "version": FORMAT_VERSION,
        "shapes": shapes,
        "provenance": dict(diff.provenance),
        "sha256": _checksum(diff),
    }
    # One metadata entry: safetensors writes several in an order that changes between runs.
    metadata = {FORMAT: json.dumps(label, sort_keys=True)}
    write_atomically(path, save(tensors, metadata))


def load_diff(path: Path) -> WeightDiff:
    """Read and check a diff file; raises DiffError for anything that is not a sound diff."""
    with open_safetensors(path, DiffError) as file:
        label = _read_label(path, file.metadata())
        offsets = {key: _read_offset(path, file, key, s) for key, s in label["shapes"].items()}
    diff = WeightDiff(offsets, label["provenance"])
    if label.get("sha256") != _checksum(diff):
        raise DiffError(f"{path}: its content does not match its checksum; the file is damaged")
    return diff


def _checksum(diff: WeightDiff) -> str:
    """Hash all that a file holds: a flipped bit in a value still reads as a value."""
    digest = hashlib.sha256(json.dumps(dict(diff.provenance), sort_keys=True).encode())
    for key, offset in sorted(diff.offsets.items()):
        digest.update(f"{key}{tuple(offset.shape)}".encode())
        digest.update(offset.indices.numpy().tobytes() + offset.values.numpy().tobytes())
    return digest.hexdigest()


def _read_label(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(FORMAT)
    if text is None:
        raise DiffError(f"{path}: not a TRUST diff (no {FORMAT!r} in its metadata)")
    try:
        label = json.loads(text)
        version, shapes = label["version"], label["shapes"]
        sound = isinstance(shapes, dict) and isinstance(label["provenance"], dict)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DiffError(f"{path}: its TRUST label cannot be read; the file is damaged") from error
    if version != FORMAT_VERSION:
        raise DiffError(f"{path}: diff format {version}, this release reads {FORMAT_VERSION}")
    if not sound:
        raise DiffError(f"{path}: its TRUST label is incomplete; the file is damaged")
    return label


def _read_offset(path: Path, file: Any, key: str, shape: Any) -> SparseOffset:
    try:
        indices, values = file.get_tensor(f"{key}.indices"), file.get_tensor(f"{key}.values")
        offset = SparseOffset(tuple(int(n) for n in shape), indices, values)
        inside = len(indices) == 0 or (
            int(indices[0]) >= 0
            and int(indices[-1]) < offset.numel
            and bool((indices.diff() > 0).all())
        )
        sound = (
            indices.dtype == torch.int32
            and values.dtype == torch.float32
            and indices.shape == values.shape == (len(indices),)
            and bool(values.isfinite().all())
        )
    except Exception as error:
        raise DiffError(f"{path}: entry {key} cannot be read; the file is damaged") from error
    if not (inside and sound):
        raise DiffError(f"{path}: entry {key} is out of bounds or not finite; the file is damaged")
    return offset


def check_fits(diff: WeightDiff, denoiser: Denoiser, name: str = "diff") -> None:
    """Raise DiffError unless the diff was made from this very base model."""
    weights = projections(denoiser)
    for key, offset in diff.offsets.items():
        if key not in weights or tuple(weights[key].shape) != offset.shape:
            raise DiffError(f"{name}: made for another kind of model (no {key} {offset.shape})")
    expected, actual = diff.provenance.get("base"), fingerprint(denoiser)
    if expected != actual:
        raise DiffError(f"{name}: made for another model (base {expected}, this is {actual})")


@contextlib.contextmanager
def applied(denoiser: Denoiser, diffs: Sequence[tuple[WeightDiff, float]]) -> Iterator[None]:
    """Add diffs times strengths, in order, for the duration; then restore the very same bits."""
    parameters: dict[str, Tensor] = dict(denoiser.module.named_parameters())
    backup: dict[str, Tensor] = {}
    try:
        with torch.inference_mode():  # hosts' weights may be inference tensors
            for diff, strength in diffs:
                for key, offset in diff.offsets.items():
                    name = denoiser.parameter_name(key)
                    weight = parameters[name]
                    backup.setdefault(name, weight.detach().clone())
                    weight.add_((strength * offset.dense()).to(weight.device, weight.dtype))
        yield
    finally:
        with torch.inference_mode():
            for name, weight in backup.items():
                parameters[name].copy_(weight)
