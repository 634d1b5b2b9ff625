"""What a run will take, told before it starts: time by what was measured here, memory by sizes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..trust_engine.frontend.wording import sized, spelled
from ..trust_engine.spec import UnlearnSpec
from ..trust_engine.unlearn.estimate import Speed, expected_seconds, pass_seconds, step_seconds
from ..trust_engine.unlearn.run import StepReport, Unlearning
from ..trust_engine.unlearn.scrubbing.picture_stage import memory_of
from .lending import Lent

LEAST = 10  # steps of a run from which a step's time is learned, and at least half of what it may
# The host's model, which its clones share -> what was measured on it, by what it was measured for.
_known: WeakKeyDictionary[Any, dict[Any, Speed]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Expected:
    """Seconds of recording, training and drawing; at_most: training may stop early."""

    recording: float
    training: float
    drawing: float
    at_most: bool

    @property
    def seconds(self) -> float:
        """Return the whole time."""
        return self.recording + self.training + self.drawing

    def __str__(self) -> str:
        parts = (("recording", self.recording), ("training", self.training),
                 ("pictures", self.drawing))  # fmt: skip
        told = [f"{name} {spelled(spent)}" for name, spent in parts if spent]
        if self.at_most:
            told = [f"{one} at most" if one.startswith("training") else one for one in told]
        return f"about {spelled(self.seconds)} ({', '.join(told)})"


def expect(lent: Lent, run: Unlearning, drawing: int) -> Expected:
    """Say how long a run will take, and `drawing` UNet passes of one sample after it."""
    spec = run.spec
    speed = measured(lent, spec)
    recording, training = expected_seconds(run, speed)
    if run.resume is not None and run.resume.recording.over:
        recording = 0.0
    return Expected(recording, training, drawing * speed.one, spec.stop_effect > 0)


def measured(lent: Lent, spec: UnlearnSpec) -> Speed:
    """Return what is known of this model here, and measure what is not."""
    known, key = _known.setdefault(lent.host.patcher.model, {}), _key(lent)
    speed = known.get(key) or Speed(pass_seconds(lent.model), {})
    if not spec.through_unet and spec.objective not in speed.step:
        spent = step_seconds(lent.model, spec.objective)
        speed = replace(speed, step={**speed.step, spec.objective: spent})
    known[key] = speed
    return speed


def _key(lent: Lent) -> Any:
    return lent.model.latent_size, lent.model.denoiser is not lent.host, lent.host.rows


class Stopwatch:
    """Looks at a run's reports: the next run of the model is expected to go as this one went."""

    def __init__(self, lent: Lent, plan: UnlearnSpec) -> None:
        """Look at a run of `plan`, the spec as it was resolved."""
        self.lent, self.plan = lent, plan
        self.first: tuple[float, int] | None = None
        self.last = (time.monotonic(), 0)
        self.pieces: dict[str, int] = {}

    def see(self, report: StepReport) -> None:
        """Take down when a report came."""
        if report.standing is None:
            self.last = (time.monotonic(), report.passes)
            if report.passes:  # recorded, not asked
                self.first = self.first or self.last
        else:
            self.pieces[report.stage] = self.pieces.get(report.stage, 0) + 1

    def remember(self) -> None:
        """Put what this run took in the place of what was measured before it."""
        known, key = _known.setdefault(self.lent.host.patcher.model, {}), _key(self.lent)
        speed, plan = known.get(key), self.plan
        if speed is None:
            return
        if self.first is not None and self.last[1] > self.first[1]:
            (began, before), (ended, passes) = self.first, self.last
            speed = replace(speed, one=(ended - began) / (passes - before))
        steps = sum(self.pieces.values()) / max(1, len(self.pieces))
        if not plan.through_unet and steps >= max(LEAST, plan.steps / 2):
            spent = (time.monotonic() - self.last[0]) / steps
            speed = replace(speed, step={**speed.step, plan.objective: spent})
        known[key] = speed


def needs(lent: Lent, run: Unlearning, whole: bool) -> str:
    """Say what memory a run will take; whole: it has a private UNet."""
    spec, total = run.spec, run.total
    if spec.robust:
        private = sum(p.nbytes for p in lent.model.denoiser.module.parameters())
        return (
            f"{total} units of work, {run.drawn} pictures, {sized(private)} for a private UNet and "
            f"{sized(memory_of(lent.model, spec))} of main memory"
        )
    shapes = lent.host.weights.shapes
    trained = [torch.Size(shapes[key]).numel() for key in lent.host.weights.projections]
    widths = [shapes[key][1] for key in lent.host.weights.projections if key.endswith("q.weight")]
    states = 2 * run.recorded * 8 * 24 * 2 * sum(widths)
    one = 4 * max(trained, default=0) * 3 * 8
    text = f"{total} units of work, about {sized(states)} of recorded states"
    if whole:
        copy = 4 * sum(torch.Size(shape).numel() for shape in shapes.values())
        return text + f", {sized(copy + 4 * 6 * sum(trained))} for a private UNet"
    return text + f" and {sized(one)} at a time for training"
