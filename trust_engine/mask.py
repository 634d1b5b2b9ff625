"""Which entries of q, k and v are concept neurons, re-estimated while training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
DECAY = 0.9


def z_scores(saliency: Tensors) -> Tensors:
    """Standardise each projection's saliency by its own mean and deviation."""
    return tuple((s - s.mean()) / s.std().clamp(min=1e-20) for s in saliency)


def top_entries(scores: Tensors, xi: float, count: int) -> Tensors:
    """Mark entries with a z-score above xi, at most `count` of them over all projections."""
    flat = torch.cat([z.flatten() for z in scores])
    flat = flat.masked_fill(flat.isnan(), -torch.inf)
    count = min(count, int((flat > xi).sum()))
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.topk(count).indices] = True  # by index: a threshold lets all ties in
    parts = chosen.split([z.numel() for z in scores])
    return tuple(part.view(z.shape) for part, z in zip(parts, scores, strict=True))


def share(mask: Tensors) -> float:
    """Return the marked share, 0..1."""
    return sum(int(m.sum()) for m in mask) / sum(m.numel() for m in mask)


def overlap(a: Tensors, b: Tensors) -> float:
    """Return the Jaccard overlap of two masks, 0..1; 1 when both are empty."""
    both = sum(int((x & y).sum()) for x, y in zip(a, b, strict=True))
    either = sum(int((x | y).sum()) for x, y in zip(a, b, strict=True))
    return both / either if either else 1.0


@dataclass
class DynamicMask:
    """The bounded mask of one layer: a smoothed saliency decides who is in at every step.

    An entry that leaves is reverted by the optimiser, so the union over time, and with it the
    diff, never holds more than `count` entries.
    """

    xi: float
    count: int
    saliency: Tensors | None = None
    current: Tensors | None = None
    first: Tensors | None = None

    def update(self, gradient: Tensors) -> Tensors:
        """Take |dE/dtheta| of this step into account and return the mask."""
        now = tuple(g.abs() for g in gradient)
        if self.saliency is None:
            self.saliency = now
        else:
            pairs = zip(self.saliency, now, strict=True)
            self.saliency = tuple(DECAY * old + (1 - DECAY) * new for old, new in pairs)
        self.current = top_entries(z_scores(self.saliency), self.xi, self.count)
        if self.first is None:
            self.first = self.current
        return self.current
