"""Eyes that compare pictures: how far a picture moved, and how far a whole set did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import SpecError
from .intervals import Figure, mean_figure
from .lpips import Lpips

LEAST = 8  # pictures below which a set says nothing


class ImageMetric(Protocol):
    """Maps pictures to vectors half of whose squared distance says how much they differ.

    Of unit vectors that is 1 - cosine.
    """

    @property
    def name(self) -> str:
        """Name it for the report."""
        ...

    def features(self, pixels: Tensor) -> Tensor | None:
        """Map pictures (b, 3, h, w) in -1..1 to (b, d); None: it cannot."""
        ...


def load_eye(text: str, device: Any = "cpu") -> ImageMetric:
    """Load "lpips:FILE" or "clip:FOLDER or FILE"; raises SpecError or ModelError."""
    check_eye(text)
    kind, _, path = text.partition(":")
    if kind == "lpips":
        return Lpips(Path(path), str(device))
    from ..judges.clip import ClipJudge

    return ClipJudge(Path(path), {}, str(device))


def check_eye(text: str) -> None:
    """Raise SpecError for an eye that is not there; loads nothing."""
    kind, _, path = text.partition(":")
    if kind not in ("lpips", "clip") or not path or not Path(path).exists():
        raise SpecError(
            f"eye {text!r} is not there; give lpips:FILE.safetensors or clip:FOLDER "
            "(docs/concepts/audit.md says where such files come from)"
        )


def distances(one: Sequence[Tensor], other: Sequence[Tensor], shift: int = 0) -> list[float]:
    """Compare pictures pairwise; `shift` compares each with a neighbour's counterpart instead."""
    if not len(one) or not len(other):
        return []
    b = [other[(i + shift) % len(other)] for i in range(len(other))]
    return [float((x.float() - y.float()).square().sum() / 2) for x, y in zip(one, b, strict=True)]


def set_distance(one: Sequence[Tensor], other: Sequence[Tensor], z: float = 1.96) -> Figure:
    """Compare two sets of unit vectors as KID does (Binkowski et al. 2018, arXiv 1801.01401).

    The squared maximum mean discrepancy under the kernel (1 + x.y)^3, unbiased: about 0, also
    below, for sets of one kind, however few. The interval is the jackknife's. FID would need
    thousands of pictures.
    """
    n = len(one)
    if n < LEAST or len(other) != n:
        return mean_figure([])
    x, y = torch.stack(list(one)).double(), torch.stack(list(other)).double()
    if not bool(torch.allclose(x.norm(dim=1), torch.ones(n, dtype=x.dtype), atol=1e-2)):
        return mean_figure([])  # no unit vectors, such as LPIPS's: the kernel would mean nothing
    xx, yy, xy = ((1 + a @ b.T) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    value = _mmd(xx, yy, xy, torch.arange(n))
    left = [_mmd(xx, yy, xy, torch.tensor([j for j in range(n) if j != i])) for i in range(n)]
    mean = sum(left) / n
    half = z * math.sqrt((n - 1) / n * sum((v - mean) ** 2 for v in left))
    return {
        "value": round(value, 4),
        "n": n,
        "low": round(value - half, 4),
        "high": round(value + half, 4),
    }


def _mmd(xx: Tensor, yy: Tensor, xy: Tensor, rows: Tensor) -> float:
    n = len(rows)
    xx, yy, xy = (k[rows][:, rows] for k in (xx, yy, xy))
    within = sum(float(k.sum() - k.diagonal().sum()) for k in (xx, yy)) / (n * (n - 1))
    # Pictures of one seed are paired, so the diagonal of xy is no chance meeting: left out.
    return within - 2 * float(xy.sum() - xy.diagonal().sum()) / (n * (n - 1))
