"""The audit as a run: iterate over it for progress, stop at any point, then read its report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..diff import WeightDiff
from ..diff.apply import patched
from ..diff.model_sampling import sampling_of
from ..distributed import SINGLE, Workers
from ..errors import SpecError
from ..models.load import LoadedModel
from ..models.precision import in_float32
from ..models.sampler import SamplerSettings, sampled
from .attacks.base import attack_check
from .attacks.catalogue import make_attack
from .checks.base import Check, CheckResult
from .checks.core import measured
from .checks.forgetting import forgetting_cells
from .checks.retention import core_cell, retention_cells
from .context import AuditContext
from .judges.base import Aligner, as_judge, is_coupled
from .levels import QUICK, Level
from .metrics.images import ImageMetric
from .probe_prompts import core_probes, paraphrase_shots
from .report.summary import Report, assemble
from .state import CellStore, State, identity
from .token_space import token_space
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
    folder or the store of a user's runs, the finished cells are found again; `say` is told so. The
    lent model's weights are only ever read.
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
        state: Path | CellStore | None = None,
        eyes: Sequence[ImageMetric] = (),
        team: Workers = SINGLE,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        images = level.images if images is None else images
        shots = core_probes(topic, images, seed)  # refuses bad input before any work
        judge = as_judge(judge)
        for label in topic.labels:
            if not judge.knows(label):
                raise SpecError(f"the judge {judge.name} does not know {label!r}")
        models = {"untouched": model, "edited": patched(model, diffs)}
        if settings is None:
            settings = sampled(SamplerSettings(), sampling_of(diff for diff, _ in diffs))
        self.context = AuditContext(
            models, judge, topic, settings, seed, images, aligner, eyes, team
        )
        self.level, self.coupled = level, is_coupled(judge, diffs)
        self.measured = measured(model, diffs)
        self.skipped: list[str] = []
        self._shots = shots
        self.cells = [core_cell(self.context, shots), *self._others()]
        kept = state if team.first else None
        self._state = State(kept, identity(self.context), say) if kept is not None else None
        self._say = say
        self._found: dict[str, tuple[CheckResult, float]] = {}

    def _others(self) -> Iterator[Check]:
        context, level = self.context, self.level
        yield from forgetting_cells(context, level)
        yield from retention_cells(context, level)
        has_text = token_space(context.models["untouched"].encoder) is not None
        for name in level.attacks:
            attack = make_attack(name, level.budgets)
            if attack.needs_text and not has_text:
                self.skipped.append(attack.title)
                continue
            yield attack_check(context, attack, level.budgets.judged, level.reference)

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
        done, total, team = 0, self.total, self.context.team
        self._found = {}
        known = team.of_first({c.name: self._state.read(c) for c in self.cells if self._state})
        self._say_known([cell for cell in self.cells if known.get(cell.name)])
        for number, cell in enumerate(self.cells):
            ready = known.get(cell.name)
            if ready is None and cell.alone and not team.mine(number):
                done += cell.passes
                continue
            if ready is None:
                context = replace(self.context, team=SINGLE) if cell.alone else self.context
                started, made, work = time.monotonic(), 0, cell.run(context)
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

    def _say_known(self, known: Sequence[Check]) -> None:
        share = sum(cell.passes for cell in known) / max(1, self.total)
        if len(known) == len(self.cells):
            self._say("this audit was finished before with the same inputs: its figures are taken "
                      "over")  # fmt: skip
        elif known:
            self._say(f"going on with an audit that was stopped at {min(0.99, share):.0%}")

    @property
    def prompts(self) -> tuple[str, ...]:
        """List the prompts that ask for the concept and for what stays, attackers' own left out."""
        shots, topic = self._shots, self.context.topic
        more = paraphrase_shots(topic, 2 * self.level.shots, self.context.seed)
        asked = (*shots.target, *shots.synonyms, *shots.others, *more)
        return tuple(dict.fromkeys(shot.prompt for shot in asked))

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
            self.context, self.level, outcomes, cost, self.coupled, self.skipped, self.measured
        )
