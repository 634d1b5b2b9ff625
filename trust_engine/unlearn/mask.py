"""Which entries of q, k and v are concept neurons, hence may change: the mask of each step.

`mask_for` chooses between two: `ShrinkingMask`, the default, has every entry at first and only ever
drops some; `BoundedMask`, the paper's, holds the most salient ones and takes them anew at a step.
Saliency, scores and masks are vectors (n,) over all entries of a unit, which its layout parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import seeds
from ..spec import UnlearnSpec
from .theta_layout import Layout

DECAY = 0.9
MOMENTS = 8  # of a mask's drift that a diff's label keeps
DENSE, SETTLE = 0.2, 0.5  # shares of a run: a shrinking mask is whole before, any mask rests after


def z_scores(values: Tensor) -> Tensor:
    """Standardise by the mean and the standard deviation, which is never quite 0."""
    return (values - values.mean()) / values.std(correction=0).clamp(min=1e-20)


def top_groups(scores: Tensor, sizes: Tensor, xi: float, count: int) -> Tensor:
    """Mark groups with a z-score above xi, the highest first, of at most `count` entries in all.

    scores, sizes: (groups,), sizes being the entries in each.
    """
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    most = min(int((scores > xi).sum()), count // int(sizes.min()))
    best = scores.topk(most).indices  # by index: a threshold lets all ties in
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[best[sizes[best].cumsum(0) <= count]] = True
    return chosen


class Groups:
    """Entries that are chosen as one: each by itself, a row's, or those of a head's rows."""

    def __init__(self, layout: Layout, granularity: str) -> None:
        pairs = list(zip(layout.shapes, layout.heads, strict=True))
        entries = {
            "entry": [1 for _ in pairs],
            "row": [shape[1:].numel() for shape, _ in pairs],
            "head": [shape.numel() // heads for shape, heads in pairs],
        }
        self.entries = entries[granularity]  # of a group, by part
        self.counts = [n // each for n, each in zip(layout.sizes, self.entries, strict=True)]
        self._single = granularity == "entry"
        self._layout = layout

    def sizes(self, device: torch.device) -> Tensor:
        """Return the entries in each group (groups,)."""
        if self._single:
            return torch.ones(1, dtype=torch.long, device=device).expand(sum(self.counts))
        counts = torch.tensor(self.counts, device=device)
        return torch.tensor(self.entries, device=device).repeat_interleave(counts)

    def means(self, values: Tensor) -> Tensor:
        """Average values (n,) over each group (groups,)."""
        if self._single:
            return values
        parts = zip(self._layout.split(values), self.entries, strict=True)
        return torch.cat([part.view(-1, each).mean(1) for part, each in parts])

    def spread(self, chosen: Tensor) -> Tensor:
        """Mark the entries (n,) of chosen groups (groups,)."""
        return chosen if self._single else chosen.repeat_interleave(self.sizes(chosen.device))


def share(mask: Tensor) -> float:
    """Return the marked share, 0..1."""
    return int(mask.sum()) / mask.numel()


def overlap(a: Tensor, b: Tensor) -> float:
    """Return the Jaccard overlap of two masks, 0..1; 1 when both are empty."""
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


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
    diff, never holds more than the budget once the mask has settled.
    """

    def __init__(self, layout: Layout, spec: UnlearnSpec) -> None:
        self.layout, self.spec = layout, spec
        self.groups = Groups(layout, spec.ablation.granularity)
        everything = spec.ablation.selection == "all"
        self.count = layout.size if everything else max(1, int(spec.budget * layout.size))
        self.saliency: Tensor | None = None
        self.current: Tensor | None = None
        self.first: Tensor | None = None
        self.reports = [MaskReport(size) for size in layout.sizes]

    @abstractmethod
    def update(
        self, step: int, saliency: Callable[[], Tensor], influence: Callable[[], Tensor]
    ) -> Tensor:
        """Return the mask m of a step; saliency and influence are worked out if it needs them.

        saliency: |dS/dtheta|; influence: what taking each entry's change back would cost.
        """

    def finish(self, influence: Callable[[], Tensor]) -> Tensor | None:
        """Return the mask within the budget if a run ends before it has settled; else None."""
        return None

    @property
    def settled(self) -> bool:
        """Tell whether the mask holds no more than the budget allows."""
        return self.current is None or int(self.current.sum()) <= self.count

    def _rests(self, step: int) -> bool:
        """Tell whether the mask no longer moves, so that the chosen entries are fitted anew."""
        return step >= SETTLE * self.spec.steps

    def _take(self, mask: Tensor) -> Tensor:
        before = mask if self.current is None else self.current
        split = self.layout.split
        for report, old, new in zip(self.reports, split(before), split(mask), strict=True):
            report.counts.append(int(new.sum()))
            report.drift.append(overlap(old, new))
        self.current = mask
        if self.first is None:
            self.first = mask
        return mask

    def _salient(self, saliency: Tensor) -> Tensor:
        """Mark the most salient groups: z-scores above xi, the highest first.

        They are a bounded mask's neurons; a shrinking one only compares them with what it kept.
        """
        scores = self.groups.means(saliency)
        if self.spec.ablation.pool == "layer":
            scores = z_scores(scores)
        else:
            scores = torch.cat([z_scores(part) for part in scores.split(self.groups.counts)])
        return self._top(scores, self.spec.xi, self.count)

    def _top(self, scores: Tensor, xi: float, count: int) -> Tensor:
        """Mark the entries of the highest groups."""
        return self.groups.spread(top_groups(scores, self.groups.sizes(scores.device), xi, count))

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
        """Return what resuming needs, part by part."""
        kept: dict[str, Tensor] = {}
        for name in ("saliency", "current", "first"):
            vector = getattr(self, name)
            for i, part in enumerate(() if vector is None else self.layout.parts(vector)):
                kept[f"{name}.{i}"] = part
        for i, report in enumerate(self.reports):
            kept[f"counts.{i}"] = torch.tensor(report.counts, dtype=torch.int64)
            kept[f"drift.{i}"] = torch.tensor(report.drift, dtype=torch.float64)
        return kept

    def load(self, kept: dict[str, Tensor], device: torch.device) -> None:
        """Go on from a state."""
        for name in ("saliency", "current", "first"):
            if f"{name}.0" in kept:  # a shrinking mask needs no saliency
                parts = (kept[f"{name}.{i}"].to(device) for i in range(len(self.reports)))
                setattr(self, name, self.layout.join(parts))
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
        layout: Layout,
        spec: UnlearnSpec,
        fixed: Tensor | None = None,
        costly: bool = False,
    ) -> None:
        super().__init__(layout, spec)
        self.fixed, self.costly = fixed, costly

    def update(
        self, step: int, saliency: Callable[[], Tensor], influence: Callable[[], Tensor]
    ) -> Tensor:
        """Take this step's saliency into account; choose anew when it is due."""
        due = self.current is None or self.due(step)
        if self.current is not None and (self._rests(step) or (self.costly and not due)):
            return self.current
        now, before = saliency(), self.saliency
        self.saliency = now if before is None else DECAY * before + (1 - DECAY) * now
        if self.current is None or due:
            return self._take(self._choose(self.saliency if self.fixed is None else self.fixed))
        return self.current

    def due(self, step: int) -> bool:
        """Tell whether the mask is to be taken anew at a step."""
        moves = (
            self.spec.ablation.selection == "neurons"
            and self.fixed is None
            and self.spec.refresh > 0
        )
        return moves and step % self.spec.refresh == 0

    def _choose(self, saliency: Tensor) -> Tensor:
        if self.spec.ablation.selection == "all":
            return torch.ones_like(saliency, dtype=torch.bool)
        if self.spec.ablation.selection == "neurons":
            return self._salient(saliency)
        return self._top(self.groups.means(self._noise(saliency)), -torch.inf, self.count)

    def _noise(self, like: Tensor) -> Tensor:
        generator = seeds.generator(seeds.random_mask(self.spec.seed))
        parts = (torch.rand(n, generator=generator) for n in self.layout.sizes)
        return self.layout.join(parts).to(like.device)


class ShrinkingMask(Mask):
    """The default: all entries at first, then ever fewer, those whose change does most.

    From DENSE to SETTLE of the run their number falls along a cubic (arXiv 1710.01878); then the
    mask rests. What has left it never comes back. Saliency only fills `first`, for the report.
    """

    def update(
        self, step: int, saliency: Callable[[], Tensor], influence: Callable[[], Tensor]
    ) -> Tensor:
        """Drop those whose change has done least, as many as it is time for."""
        if self.current is None:
            self.saliency = saliency()
            self.first = self._salient(self.saliency)  # to tell later how far neurons have moved
        refresh = self.spec.refresh
        if self.current is None or self._rests(step) or (refresh and step % refresh == 0):
            return self.shrink(influence(), step / self.spec.steps)
        return self.current

    def shrink(self, influence: Tensor, progress: float) -> Tensor:
        """Keep the most influential of the entries that are left; progress is a fraction 0..1."""
        if self.current is None or progress < DENSE:
            ones = torch.ones_like(influence, dtype=torch.bool)
            return self._take(ones) if self.current is None else self.current
        if self.settled:
            return self.current
        left = 1 - min(1.0, (progress - DENSE) / (SETTLE - DENSE))
        count = int(self.count + (self.layout.size - self.count) * left**3)
        inside = self.groups.means(self.current.float())
        scores = self.groups.means(influence).masked_fill(inside == 0, -torch.inf)
        return self._take(self._top(scores, -1.0, count))

    def finish(self, influence: Callable[[], Tensor]) -> Tensor | None:
        """Shrink to the budget at once if the run was too short for it."""
        return None if self.settled else self.shrink(influence(), 1.0)


def mask_for(
    spec: UnlearnSpec, layout: Layout, fixed: Tensor | None = None, costly: bool = False
) -> Mask:
    """Choose the mask that a spec asks for."""
    if spec.shrinks:
        return ShrinkingMask(layout, spec)
    return BoundedMask(layout, spec, fixed, costly)
