"""LoRA files that hosts load without our extension: dense `.diff` keys, or low rank."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DiffError
from ..io.safetensors import planned, tensor_bytes, write_tensors
from ..models.unet_families import FAMILIES, family_of
from ..settings import in_range
from .apply import LARGEST_LOSS
from .file import payload_sha256
from .lora_factors import Parts, numel, rebuilt, stock_parts
from .weight_diff import Offset, WeightDiff

PROVENANCE = "trust-provenance"
_LARGEST = 1 << 26  # entries; the largest weight of SD 1.x, 2.x and SDXL has 3e7
_WIDEST = 65504.0
_UNUSUAL = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class ExportReport:
    """What an export lost, as shares of the norm: over all weights and in the worst; ranks used."""

    error: float
    worst: float
    worst_key: str
    ranks: tuple[int, ...] = ()
    dense: int = 0

    def __str__(self) -> str:
        text = f"error {self.error:.3%} of the change, {self.worst:.3%} in the worst weight"
        if self.ranks:
            text += f"; ranks {min(self.ranks)} to {max(self.ranks)}"
        return text + (f"; {self.dense} weights kept dense" if self.dense else "")


def export_dense(diff: WeightDiff, out: Path, dtype: torch.dtype = torch.float16) -> ExportReport:
    """Write every changed weight's whole offset as `lora_unet_<ldm name>.diff`, a bias's `.diff_b`.

    The widest reach: ComfyUI's LoraLoader and the built-in Lora of A1111 and Forge.
    """
    offsets = _exportable(diff)
    names = {dense_name(key): key for key in offsets}
    plan = planned({name: (dtype, offsets[key].shape) for name, key in names.items()})

    def produce(name: str) -> Iterable[memoryview]:
        return (tensor_bytes(offsets[names[name]].dense().to(dtype)),)

    report = _report({key: _rounding(offset, dtype) for key, offset in offsets.items()})
    if report.error > LARGEST_LOSS:
        raise DiffError(
            f"the diff's changes are too small for {str(dtype).removeprefix('torch.')}, in which "
            f"LoRA files are written: {report}; export a checkpoint instead"
        )
    write_tensors(out, plan, produce, stock_metadata(diff, out, {"format": "dense"}))
    return report


def export_lora(
    diff: WeightDiff, out: Path, bound: float = 0.1, max_rank: int | None = None
) -> ExportReport:
    """Write each offset as up @ down of the least rank whose relative error is within `bound`.

    One that is a product of factors is written as it is, exactly but for float16, and `bound` is
    of the single entries beside them. A weight for which low rank saves nothing is kept dense, and
    one whose bias moves, too: A1111 reads biases beside dense weights only. max_rank may break the
    bound: the report, also in the file's metadata, says what the error is. Norms are Frobenius.
    """
    in_range("error bound", bound, 0.0, 1.0)
    if max_rank is not None:
        in_range("max rank", max_rank, 1, 4096, whole=True)
    offsets = _exportable(diff)
    tensors: dict[str, Tensor] = {}
    losses: dict[str, tuple[float, float]] = {}
    ranks: list[int] = []
    dense: dict[str, Offset] = {}
    for key, offset in sorted(offsets.items()):
        found = None if _biased(key, offsets) else _factored(offset, bound, max_rank)
        if found is None:
            dense[dense_name(key)] = offset
            losses[key] = _rounding(offset, torch.float16)
            continue
        parts, rank = found
        ranks.append(rank)
        losses[key] = _loss(offset.dense(), rebuilt(parts))
        tensors.update({f"{stock_name(key)}.{part}": tensor for part, tensor in parts.items()})
    report = _report(losses, tuple(ranks), len(dense))
    shapes: dict[str, Any] = {n: (t.dtype, t.shape) for n, t in tensors.items()}
    shapes.update({n: (torch.float16, o.shape) for n, o in dense.items()})

    def produce(name: str) -> Iterable[memoryview]:
        return (tensor_bytes(tensors[name] if name in tensors else dense[name].dense().half()),)

    about = {"format": "lora", "error": report.error, "worst": report.worst}
    write_tensors(
        out, planned(shapes), produce, stock_metadata(diff, out, about, max(ranks or [0]))
    )
    return report


def _biased(key: str, offsets: Mapping[str, Offset]) -> bool:
    """Tell whether a tensor is a bias, or the weight of a layer whose bias moves as well."""
    return key.endswith(".bias") or bias_of(key) in offsets


def _factored(offset: Offset, bound: float, max_rank: int | None) -> tuple[Parts, int] | None:
    """Return an offset's LoRA tensors and their rank; None where dense is no larger."""
    factors = _with_entries(offset, bound, max_rank)
    if factors is not None and len(factors[1]) <= (max_rank or math.inf):
        parts = stock_parts(*factors)
        return (parts, len(factors[1])) if numel(parts) < offset.numel else None
    if factors is None and offset.factors is not None and max_rank is None:
        return None  # kept whole, lest its entries drown in what is lost of its factors
    found = low_rank(offset.dense().flatten(1), bound, max_rank)
    if found is None:
        return None
    rank = found[0].shape[1]
    return _lora_parts(offset.shape, *found), rank


def _with_entries(
    offset: Offset, bound: float, max_rank: int | None
) -> tuple[Tensor, Tensor] | None:
    """Return an offset's own factors, and with them its single entries', of low rank within bound.

    As a share of these entries: beside factors, which may be far larger, they would be lost.
    """
    factors, entries = offset.factors, offset.sparse
    if factors is None or entries is None or entries.is_zero:
        return factors
    (up, down), room = factors, max_rank and max_rank - len(factors[1])
    if up.ndim > 2 or (room is not None and room < 1):
        return None
    found = low_rank(entries.dense(), bound, room)
    if found is None:
        return None
    return torch.cat([up, found[0].float()], 1), torch.cat([down, found[1].float()])


def low_rank(matrix: Tensor, bound: float, max_rank: int | None) -> tuple[Tensor, Tensor] | None:
    """Factor (m, n) into float16 up (m, r) @ down (r, n); None when dense is no larger."""
    if matrix.shape[0] > matrix.shape[1]:
        turned = low_rank(matrix.T, bound, max_rank)
        return turned and (turned[1].T.contiguous(), turned[0].T.contiguous())
    # The eigenvectors of D D^T are D's left singular vectors, at a third of an SVD's price. In
    # float32 the search for them does not always converge on offsets that are small and sparse.
    exact = matrix.double()
    energies, vectors = torch.linalg.eigh(exact @ exact.T)
    energies, vectors = energies.flip(0).clamp(min=0), vectors.flip(1).float()
    left = 1 - energies.cumsum(0) / energies.sum().clamp(min=1e-300)
    rank = min(int((left > bound**2).sum()) + 1, len(energies), max_rank or len(energies))
    if rank * sum(matrix.shape) >= matrix.numel():
        return None
    basis = vectors[:, :rank]
    evenly = energies[:rank].sqrt().sqrt()  # split between the two: float16 is narrow
    scale = evenly.clamp(min=1e-12).float()
    up, down = basis * scale, (basis.T @ matrix) / scale[:, None]
    return up.half(), down.half()


def stock_name(key: str) -> str:
    """Return the name that stock loaders know a weight by."""
    return "lora_unet_" + key.removesuffix(".weight").replace(".", "_")


def dense_name(key: str) -> str:
    """Return the name of a weight's or bias's whole offset."""
    if key.endswith(".bias"):
        return f"{stock_name(key.removesuffix('.bias') + '.weight')}.diff_b"
    return f"{stock_name(key)}.diff"


def bias_of(key: str) -> str:
    """Name the bias beside a weight."""
    return f"{key.removesuffix('.weight')}.bias"


def _exportable(diff: WeightDiff) -> dict[str, Offset]:
    """Return what there is to export; raises DiffError for what hosts would skip without a word."""
    offsets = {key: offset for key, offset in diff.offsets.items() if not offset.is_zero}
    biases = {bias_of(key) for key, o in offsets.items() if len(o.shape) > 1}
    if not offsets:
        raise DiffError("the diff changes nothing, so there is nothing to export")
    for key, offset in offsets.items():
        if key not in biases and (not key.endswith(".weight") or len(offset.shape) < 2):
            raise DiffError(
                f"{key}: stock Lora loaders carry no norms, and biases only beside their layer's "
                "weight; export a checkpoint instead"
            )
        widest = offset.widest
        if widest > _WIDEST:
            raise DiffError(
                f"{key}: changes by up to {widest:.3g}, more than float16 holds ({_WIDEST:,.0f}), "
                "in which LoRA files are read; export a checkpoint instead"
            )
        if offset.numel > _LARGEST:
            raise DiffError(f"{key}: {list(offset.shape)} is larger than any weight of a UNet")
    return offsets


def stock_metadata(
    diff: WeightDiff, out: Path, about: dict[str, Any], rank: int = 0
) -> dict[str, str]:
    """Return what hosts need to show and apply the file, and where it came from."""
    name = family_of(diff.shapes) or diff.provenance.get("family")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    told = {
        **{
            k: diff.provenance[k]
            for k in ("base", "family", "spec", "engine", "parts")
            if k in diff.provenance
        },
        **about,
        "sha256": payload_sha256(diff),
    }
    return {
        **(family.tags if family else {}),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_output_name": _UNUSUAL.sub("_", out.stem)[:80] or "trust",
        PROVENANCE: json.dumps(told, sort_keys=True),
    }


def _lora_parts(shape: tuple[int, ...], up: Tensor, down: Tensor) -> Parts:
    rank = up.shape[1]
    if len(shape) == 4:  # a convolution: the kernel goes down, a 1x1 comes up
        up, down = up.view(*up.shape, 1, 1), down.view(rank, *shape[1:])
    return {
        "lora_up.weight": up.contiguous(),
        "lora_down.weight": down.contiguous(),
        "alpha": torch.tensor(float(rank), dtype=torch.float32),
    }


def _rounding(offset: Offset, dtype: torch.dtype) -> tuple[float, float]:
    # Rounding an offset loses the same whether its zeros are written out or not.
    values = offset.entries().values
    return _loss(values, values.to(dtype).float())


def _loss(wanted: Tensor, got: Tensor) -> tuple[float, float]:
    wanted = wanted.double()
    return float((got - wanted).square().sum()), float(wanted.square().sum())


def _report(
    losses: dict[str, tuple[float, float]], ranks: tuple[int, ...] = (), dense: int = 0
) -> ExportReport:
    shares = {k: math.sqrt(e / w) if w else 0.0 for k, (e, w) in losses.items()}
    error, wanted = (sum(pair[i] for pair in losses.values()) for i in (0, 1))
    worst = max(shares, key=lambda key: shares[key], default="")
    whole = math.sqrt(error / wanted) if wanted else 0.0
    return ExportReport(whole, shares.get(worst, 0.0), worst, ranks, dense)
