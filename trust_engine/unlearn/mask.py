"""Which entries of q, k and v are concept neurons, re-estimated while training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..spec import UnlearnSpec

Tensors = tuple[Tensor, ...]
DECAY = 0.9
MOMENTS = 8  # of a mask's drift that a diff's label keeps
DENSE, SETTLE = 0.2, 0.5  # shares of a run: a shrinking mask is whole before, any mask rests after


def z_scores(saliency: Tensors, pooled: bool = False) -> Tensors:
    """Standardise saliency by the mean and deviation of each projection, or of all together."""
    if not pooled:
        return tuple((s - s.mean()) / deviation(s) for s in saliency)
    flat = torch.cat([s.flatten() for s in saliency])
    mean, spread = flat.mean(), deviation(flat)
    return tuple((s - mean) / spread for s in saliency)


def deviation(values: Tensor) -> Tensor:
    """Return the standard deviation, never quite 0."""
    return values.std(correction=0).clamp(min=1e-20)


def grouped(saliency: Tensors, rows: Sequence[int]) -> Tensors:
    """Average saliency over groups of `rows` rows; 0 rows leaves entries as they are."""
    pairs = zip(saliency, rows, strict=True)
    return tuple(s.view(len(s) // n, -1).mean(1) if n else s for s, n in pairs)


def top_groups(scores: Tensors, sizes: Sequence[int], xi: float, count: int) -> Tensors:
    """Mark groups with a z-score above xi, the highest first, of at most `count` entries in all.

    sizes: entries in a group, one number for each projection.
    """
    flat = torch.cat([z.flatten() for z in scores])
    flat = flat.masked_fill(flat.isnan(), -torch.inf)
    weights = torch.cat(
        [
            torch.full((z.numel(),), n, device=flat.device)
            for z, n in zip(scores, sizes, strict=True)
        ]
    )
    most = min(int((flat > xi).sum()), count // min(sizes))
    best = flat.topk(most).indices  # by index: a threshold lets all ties in
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[best[weights[best].cumsum(0) <= count]] = True
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


def thinned(values: Sequence[float]) -> list[float]:
    """Keep a few of many numbers, the first and the last among them."""
    if len(values) <= MOMENTS:
        return [round(v, 4) for v in values]
    places = [round(i * (len(values) - 1) / (MOMENTS - 1)) for i in range(MOMENTS)]
    return [round(values[i], 4) for i in places]


@dataclass
class MaskReport:
    """How one projection's neurons moved: counts and overlap with the mask before, by refresh."""

    entries: int
    counts: list[int] = field(default_factory=list)
    drift: list[float] = field(default_factory=list)


class Mask(ABC):
    """Which entries may change now, and how that has moved; `update` is called once a step.

    An entry that leaves is reverted by the optimiser, so that the union over time, and with it the
    diff, never holds more than the budget once the mask has settled. `heads` tells how many heads
    share each projection's rows.
    """

    def __init__(
        self, shapes: Sequence[torch.Size], spec: UnlearnSpec, heads: Sequence[int]
    ) -> None:
        self.spec = spec
        self.count = max(1, int(spec.budget * sum(s.numel() for s in shapes)))
        if spec.selection == "all":
            self.count = sum(s.numel() for s in shapes)
        per_head = [s[0] // h for s, h in zip(shapes, heads, strict=True)]
        rows = {"entry": [0] * len(shapes), "row": [1] * len(shapes), "head": per_head}
        self._rows = rows[spec.granularity]
        self._sizes = [n * s[1] if n else 1 for s, n in zip(shapes, self._rows, strict=True)]
        self.saliency: Tensors | None = None
        self.current: Tensors | None = None
        self.first: Tensors | None = None
        self.reports = [MaskReport(s.numel()) for s in shapes]

    @abstractmethod
    def update(
        self, step: int, saliency: Callable[[], Tensors], influence: Callable[[], Tensors]
    ) -> Tensors:
        """Return the mask m of a step; saliency and influence are worked out if it needs them.

        saliency: |dS/dtheta| of every tensor; influence: what taking each change back would cost.
        """

    def finish(self, influence: Callable[[], Tensors]) -> Tensors | None:
        """Return the mask within the budget if a run ends before it has settled; else None."""
        return None

    @property
    def settled(self) -> bool:
        """Tell whether the mask holds no more than the budget allows."""
        return self.current is None or sum(int(m.sum()) for m in self.current) <= self.count

    def _rests(self, step: int) -> bool:
        """Tell whether the mask no longer moves, so that the chosen entries are fitted anew."""
        return step >= SETTLE * self.spec.steps

    def _take(self, mask: Tensors) -> Tensors:
        before = self.current or mask
        for report, old, new in zip(self.reports, before, mask, strict=True):
            report.counts.append(int(new.sum()))
            report.drift.append(overlap((old,), (new,)))
        self.current = mask
        if self.first is None:
            self.first = mask
        return mask

    def _salient(self, saliency: Tensors) -> Tensors:
        """Mark the concept neurons: groups whose z-score tops xi, the highest first."""
        scores = grouped(saliency, self._rows)
        scores = z_scores(scores, self.spec.pool == "layer")
        return self._spread(top_groups(scores, self._sizes, self.spec.xi, self.count), saliency)

    def _spread(self, chosen: Tensors, like: Tensors) -> Tensors:
        """Turn chosen groups of rows into masks of their entries."""
        return tuple(
            c.view(len(c), 1).expand_as(s.reshape(len(c), -1)).reshape(s.shape) if n else c
            for c, s, n in zip(chosen, like, self._rows, strict=True)
        )

    def mark(self) -> Any:
        """Note where it stands, for `back_to`; its tensors are replaced, never written to."""
        lengths = [(len(report.counts), len(report.drift)) for report in self.reports]
        return self.saliency, self.current, self.first, lengths

    def back_to(self, mark: Any) -> None:
        """Stand again where a mark was taken."""
        self.saliency, self.current, self.first, lengths = mark
        for report, (counts, drift) in zip(self.reports, lengths, strict=True):
            del report.counts[counts:], report.drift[drift:]

    def state(self) -> dict[str, Tensor]:
        """Return what resuming needs."""
        kept: dict[str, Tensor] = {}
        for name in ("saliency", "current", "first"):
            for i, tensor in enumerate(getattr(self, name) or ()):
                kept[f"{name}.{i}"] = tensor
        for i, report in enumerate(self.reports):
            kept[f"counts.{i}"] = torch.tensor(report.counts, dtype=torch.int64)
            kept[f"drift.{i}"] = torch.tensor(report.drift, dtype=torch.float64)
        return kept

    def load(self, kept: dict[str, Tensor], device: torch.device) -> None:
        """Go on from a state."""
        for name in ("saliency", "current", "first"):
            if f"{name}.0" in kept:  # a shrinking mask needs no saliency
                tensors = [kept[f"{name}.{i}"].to(device) for i in range(len(self.reports))]
                setattr(self, name, tuple(tensors))
        for i, report in enumerate(self.reports):
            report.counts = kept[f"counts.{i}"].tolist()
            report.drift = kept[f"drift.{i}"].tolist()


class BoundedMask(Mask):
    """The paper's mask: from the start no more than the budget, chosen by a smoothed saliency.

    fixed: a saliency found elsewhere, kept for good; costly: it takes UNet passes, and is asked for
    only when the mask is taken anew.
    """

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        spec: UnlearnSpec,
        heads: Sequence[int],
        fixed: Tensors | None = None,
        costly: bool = False,
    ) -> None:
        super().__init__(shapes, spec, heads)
        self.fixed, self.costly = fixed, costly

    def update(
        self, step: int, saliency: Callable[[], Tensors], influence: Callable[[], Tensors]
    ) -> Tensors:
        """Take this step's saliency into account; choose anew when it is due."""
        due = self.current is None or self.due(step)
        if self.current is not None and (self._rests(step) or (self.costly and not due)):
            return self.current
        now = saliency()
        if self.saliency is None:
            self.saliency = now
        else:
            pairs = zip(self.saliency, now, strict=True)
            self.saliency = tuple(DECAY * old + (1 - DECAY) * new for old, new in pairs)
        if self.current is None or due:
            return self._take(self._choose(self.saliency if self.fixed is None else self.fixed))
        return self.current

    def due(self, step: int) -> bool:
        """Tell whether the mask is to be taken anew at a step."""
        moves = self.spec.selection == "neurons" and self.fixed is None and self.spec.refresh > 0
        return moves and step % self.spec.refresh == 0

    def _choose(self, saliency: Tensors) -> Tensors:
        if self.spec.selection == "all":
            return tuple(torch.ones_like(s, dtype=torch.bool) for s in saliency)
        if self.spec.selection == "neurons":
            return self._salient(saliency)
        noise = self._noise(saliency)
        scores = grouped(noise, self._rows)
        return self._spread(top_groups(scores, self._sizes, -torch.inf, self.count), noise)

    def _noise(self, like: Tensors) -> Tensors:
        generator = torch.Generator().manual_seed(self.spec.seed)
        return tuple(torch.rand(s.shape, generator=generator).to(s.device) for s in like)


class ShrinkingMask(Mask):
    """All entries at first, and fewer and fewer of the most influential, down to the budget.

    From DENSE to SETTLE of the run their number falls along a cubic (arXiv 1710.01878).
    """

    def update(
        self, step: int, saliency: Callable[[], Tensors], influence: Callable[[], Tensors]
    ) -> Tensors:
        """Drop those whose change has done least, as many as it is time for."""
        if self.current is None:
            self.saliency = saliency()
            self.first = self._salient(self.saliency)  # to tell later how far neurons have moved
        refresh = self.spec.refresh
        if self.current is None or self._rests(step) or (refresh and step % refresh == 0):
            return self.shrink(influence(), step / self.spec.steps)
        return self.current

    def shrink(self, influence: Tensors, progress: float) -> Tensors:
        """Keep the most influential of the entries that are left; progress is a fraction 0..1."""
        if self.current is None or progress < DENSE:
            ones = tuple(torch.ones_like(s, dtype=torch.bool) for s in influence)
            return self._take(ones) if self.current is None else self.current
        if self.settled:
            return self.current
        left = 1 - min(1.0, (progress - DENSE) / (SETTLE - DENSE))
        whole = sum(s.numel() for s in influence)
        count = int(self.count + (whole - self.count) * left**3)
        scores = grouped(influence, self._rows)
        inside = grouped(tuple(m.float() for m in self.current), self._rows)
        pairs = zip(scores, inside, strict=True)
        scores = tuple(s.masked_fill(m == 0, -torch.inf) for s, m in pairs)
        chosen = top_groups(scores, self._sizes, -1.0, count)
        return self._take(self._spread(chosen, influence))

    def finish(self, influence: Callable[[], Tensors]) -> Tensors | None:
        """Shrink to the budget at once if the run was too short for it."""
        return None if self.settled else self.shrink(influence(), 1.0)


def mask_for(
    spec: UnlearnSpec,
    shapes: Sequence[torch.Size],
    heads: Sequence[int],
    fixed: Tensors | None = None,
    costly: bool = False,
) -> Mask:
    """Choose the mask that a spec asks for."""
    if spec.shrinks:
        return ShrinkingMask(shapes, spec, heads)
    return BoundedMask(shapes, spec, heads, fixed, costly)
