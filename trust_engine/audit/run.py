"""The audit as a run: iterate over it for progress, stop at any point, then read its report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..diff import WeightDiff
from ..diff.overrides import patched
from ..distributed import SINGLE, Workers
from ..errors import SpecError
from ..models.load import LoadedModel
from ..models.precision import in_float32
from ..models.sampler import SamplerSettings
from ..models.token_embeddings import token_space
from .attacks.base import attack_check
from .attacks.catalogue import make_attack
from .check import Check, CheckResult
from .checks.core import measured
from .checks.forgetting import forgetting_cells
from .checks.retention import core_cell, retention_cells
from .context import AuditContext
from .judges.base import Aligner, as_judge, is_coupled
from .levels import QUICK, Level
from .metrics.images import ImageMetric
from .probes import core_probes
from .report.summary import Report, assemble
from .state import State, identity
from .topic import Topic


@dataclass(frozen=True)
class AuditStep:
    """Progress: `done` of `total` UNet passes, and the cell at work."""

    done: int
    total: int
    stage: str


class Audit:
    """One audit of a model under diffs, beside the untouched model.

    Iterate for progress; to cancel, stop iterating: nothing needs restoring, and with `state`, a
    folder, the finished cells are found again. The lent model's weights are only ever read.
    """

    def __init__(
        self,
        model: LoadedModel,
        judge: Any,
        diffs: Sequence[tuple[WeightDiff, float]],
        topic: Topic,
        level: Level = QUICK,
        images: int | None = None,
        seed: int = 0,
        settings: SamplerSettings | None = None,
        aligner: Aligner | None = None,
        state: Path | None = None,
        eyes: Sequence[ImageMetric] = (),
        team: Workers = SINGLE,
    ) -> None:
        images = level.images if images is None else images
        shots = core_probes(topic, images, seed)  # refuses bad input before any work
        judge = as_judge(judge)
        for label in topic.labels:
            if not judge.knows(label):
                raise SpecError(f"the judge {judge.name} does not know {label!r}")
        models = {"untouched": model, "edited": patched(model, diffs)}
        settings = settings or SamplerSettings()
        self.studio = AuditContext(
            models, judge, topic, settings, seed, images, aligner, eyes, team
        )
        self.level, self.coupled = level, is_coupled(judge, diffs)
        self.measured = measured(model, diffs)
        self.skipped: list[str] = []
        self.cells = [core_cell(self.studio, shots), *self._others()]
        kept = state if team.first else None
        self._state = State(kept, identity(self.studio)) if kept else None
        self._found: dict[str, tuple[CheckResult, float]] = {}

    def _others(self) -> Iterator[Check]:
        studio, level = self.studio, self.level
        yield from forgetting_cells(studio, level)
        yield from retention_cells(studio, level)
        has_text = token_space(studio.models["untouched"].encoder) is not None
        for name in level.attacks:
            attack = make_attack(name, level.budgets)
            if attack.needs_text and not has_text:
                self.skipped.append(attack.title)
                continue
            yield attack_check(studio, attack, level.budgets.judged, level.reference)

    @property
    def total(self) -> int:
        """Estimate the work in UNet passes; a backward pass counts as two."""
        return sum(cell.passes for cell in self.cells)

    # A host may run us in inference mode, whose tensors cannot be differentiated. Decorators
    # switch it for each resumption alone; a `with` would last into the host's own code.
    @torch.inference_mode(False)
    @torch.enable_grad()
    @in_float32
    def __iter__(self) -> Iterator[AuditStep]:
        done, total, team = 0, self.total, self.studio.team
        self._found = {}
        known = team.of_first({c.name: self._state.read(c) for c in self.cells if self._state})
        for number, cell in enumerate(self.cells):
            ready = known.get(cell.name)
            if ready is None and cell.alone and not team.mine(number):
                done += cell.passes
                continue
            if ready is None:
                studio = replace(self.studio, team=SINGLE) if cell.alone else self.studio
                started, made, work = time.monotonic(), 0, cell.run(studio)
                while True:
                    try:
                        made += next(work)
                    except StopIteration as stop:
                        outcome: CheckResult = stop.value
                        break
                    yield AuditStep(done + min(made, cell.passes), total, cell.name)
                ready = outcome, time.monotonic() - started
                if self._state:
                    self._state.write(cell, *ready)
            self._found[cell.name] = ready
            done += cell.passes
            yield AuditStep(done, total, cell.name)
        team.unite(self._found, [cell.name for cell in self.cells])

    @property
    def report(self) -> Report:
        """The finished audit; raises SpecError when it was not iterated to its end."""
        if len(self._found) < len(self.cells):
            raise SpecError("the audit is not finished; iterate over it to its end first")
        outcomes = {name: outcome for name, (outcome, _) in self._found.items()}
        seconds = {name: round(spent, 1) for name, (_, spent) in self._found.items()}
        cost = {
            "unet_passes": self.total,
            "seconds": round(sum(seconds.values()), 1),
            "cells": {c.name: {"passes": c.passes, "seconds": seconds[c.name]} for c in self.cells},
        }
        return assemble(
            self.studio, self.level, outcomes, cost, self.coupled, self.skipped, self.measured
        )
