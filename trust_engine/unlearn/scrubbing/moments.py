"""Second moments of what enters a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import SpecError


def sums(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Add up x x^T (d, d) and x (d,) over the positions of (b, n, d) or (b, d, h, w), and count."""
    rows = x.detach().float()
    rows = rows.movedim(1, -1) if rows.ndim == 4 else rows
    rows = rows.reshape(-1, rows.shape[-1])
    return rows.T @ rows, rows.sum(0), len(rows)


class Moments:
    """The mean of x x^T over the inputs (b, n, d) or (b, d, h, w) of a layer.

    Each batch's product is taken and added in float32: n batches leave an error of about
    (n + sqrt(positions)) 2^-24 of the mean variance, where a ridge of 2^-6 of it is added before
    anything is divided by it. Float64 totals would double the largest part of main memory.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.sum: Tensor | None = None
        self.count = 0

    def add(self, x: Tensor) -> None:
        """Take a batch's positions into account."""
        product, added, count = sums(x)
        product, added = product.cpu(), added.cpu()
        self.total = product if self.total is None else self.total.add_(product)
        self.sum = added if self.sum is None else self.sum.add_(added)
        self.count += count

    @classmethod
    def of(cls, parts: Sequence[Moments]) -> Moments:
        """Put the inputs of several together; of one, that one itself."""
        if len(parts) == 1:
            return parts[0]
        whole = cls()
        for part in parts:
            if part.total is not None and part.sum is not None:
                whole.total = part.total if whole.total is None else whole.total + part.total
                whole.sum = part.sum if whole.sum is None else whole.sum + part.sum
                whole.count += part.count
        return whole

    @property
    def mean(self) -> Tensor:
        """Return the moments (d, d) in float64."""
        if self.total is None:
            raise SpecError("a layer was never reached while its inputs were measured")
        return self.total.double() / self.count

    @property
    def centre(self) -> Tensor:
        """Return the mean of x, (d,) in float64."""
        if self.sum is None:
            raise SpecError("a layer was never reached while its inputs were measured")
        return self.sum.double() / self.count

    def around(self, centre: Tensor) -> Tensor:
        """Return the moments of x - centre, (d, d) in float64."""
        cross = torch.outer(self.centre, centre)
        return self.mean - cross - cross.T + torch.outer(centre, centre)
