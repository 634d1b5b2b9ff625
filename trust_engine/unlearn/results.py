"""What a run has come to, unit by unit: offsets, neurons, last figures, curves and their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..diff import LowRankOffset, Offset, SparseOffset
from ..distributed import Workers
from ..models.unet_keys import projection_of
from .end_to_end import Cost
from .mask import overlap, thinned
from .run_state import RunState
from .scrubbing.picture_stage import Scrubbed
from .trainer import Metrics, SelectiveTrainer
from .trajectory import Recording
from .units import Problems, Unit
from .word_knowledge import Knowledge


@dataclass
class Results:
    """Offsets by weight, neurons by projection, and figures by unit; UNet passes, one sample each.

    offsets: of what was trained; curves: effect and harm after each step; scrubbed: of robust
    mode's first stage, once it is over.
    """

    offsets: dict[str, SparseOffset] = field(default_factory=dict)
    neurons: dict[str, dict[str, Any]] = field(default_factory=dict)
    final: dict[str, Metrics] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    passes: int = 0
    backward: int = 0
    scrubbed: Scrubbed | None = None

    @classmethod
    def of(cls, kept: RunState) -> Results:
        """Take up a state's."""
        curves = {name: list(kept.curves.get(name, ())) for name in kept.final}
        final, neurons = dict(kept.final), dict(kept.neurons)
        offsets = {key: o.sparse for key, o in kept.offsets.items() if o.sparse is not None}
        scrubbed = None
        if kept.scrubbed is not None:
            factors = {k: o.factors for k, o in kept.offsets.items() if o.factors is not None}
            low_rank = {key: LowRankOffset(*both) for key, both in factors.items()}
            scrubbed = Scrubbed(low_rank, *kept.scrubbed)
        return cls(offsets, neurons, final, curves, kept.passes, kept.backward, scrubbed)

    @property
    def whole(self) -> dict[str, Offset]:
        """Return the offsets of both stages together, by weight."""
        low_rank = self.scrubbed.offsets if self.scrubbed else {}
        found: dict[str, Offset] = {**low_rank, **self.offsets}
        for key in low_rank.keys() & self.offsets.keys():
            found[key] = replace(low_rank[key], sparse=self.offsets[key])
        return found

    @property
    def spent_before(self) -> tuple[int, int]:
        """Count the UNet passes of stages before the recording, and those back."""
        return (self.scrubbed.passes, self.scrubbed.backward) if self.scrubbed else (0, 0)

    @property
    def effect(self) -> float:
        """Return how much of the concept's effect is left, the mean over what has been trained."""
        return sum(step.effect for step in self.final.values()) / max(1, len(self.final))

    @property
    def changed(self) -> bool:
        """Tell whether any entry has."""
        return any(not offset.is_zero for offset in self.offsets.values())

    def take(self, unit: Unit, trainer: SelectiveTrainer) -> None:
        """Add a unit's result, or, if it diverged, its last good one."""
        current, first, standing = trainer.mask.current, trainer.mask.first, trainer.standing
        if current is None or first is None or standing is None:
            return  # it diverged before its first step was over
        current = trainer.keep_to_budget(current)
        self.final[unit.name] = standing
        views = map(trainer.problem.layout.parts, (trainer.offset, current, first))
        parts = zip(unit.keys, *views, trainer.mask.reports, strict=True)
        for key, offset, mask, start, report in parts:
            self.offsets[key] = SparseOffset.of(offset)
            if projection_of(key) is None:
                continue  # where neurons move is a question about q, k and v
            self.neurons[key.removesuffix(".weight")] = {
                "entries": mask.numel(),
                "first": int(start.sum()),
                "last": int(mask.sum()),
                "overlap": round(overlap(start, mask), 4),
                "drift": thinned(report.drift),
                "counts": thinned(report.counts),
            }

    def count(self, problems: Problems, kept: RunState | None = None) -> None:
        """Count passes through the UNet; setting up is not paid for again if `kept` has been."""
        if not problems.needs_whole:
            return
        spent = kept.passes - kept.recording.passes if kept is not None else 0
        if kept is not None and spent > 0:
            problems.paid(Cost(spent, kept.backward))
        cost = problems.cost
        self.passes = problems.recording.passes + cost.forward
        self.backward = cost.backward

    def state(
        self,
        spec: str,
        identity: str,
        recording: Recording,
        unit: str,
        training: dict[str, Tensor],
        knowledge: Knowledge | None,
    ) -> RunState:
        """Return what a later run goes on from; unit, training: the one at work, "" for none."""
        known = {*self.final, unit}
        return RunState(
            spec,
            identity,
            self.passes,
            self.backward,
            recording,
            self.whole,
            dict(self.neurons),
            dict(self.final),
            unit,
            training,
            {name: list(curve) for name, curve in self.curves.items() if name in known},
            scrubbed=self.scrubbed.figures if self.scrubbed else None,
            knowledge=knowledge,
        )

    def pool(self, team: Workers, units: Sequence[str]) -> None:
        """Put together what the team's processes did, in the order in which one would have."""
        for found in (self.offsets, self.neurons, self.final, self.curves):
            team.unite(found, units)
        self.passes, self.backward = max(team.gather((self.passes, self.backward)))
