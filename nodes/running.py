"""One run of the engine under the host's progress bar, with curves for the charts."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..trust_engine.errors import SpecError
from ..trust_engine.spec import UnlearnSpec
from ..trust_engine.unlearn.resolve import followed
from ..trust_engine.unlearn.run import StepReport, Unlearning
from ..trust_engine.unlearn.state import RunState
from .charts import chart
from .drawing import previewed
from .expecting import Stopwatch, expect, needs
from .lending import Lent
from .progress import Bar, tell

log = logging.getLogger(__name__)
SHOWN = 60  # points of a finished curve in the browser
# What decides what is recorded.
RECORDED = ("concepts", "trajectory_steps", "cfg", "passes", "robust", "seed")


@dataclass
class Ran:
    """A finished run, its curves by piece, how long it took, and what there is to say."""

    run: Unlearning
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Neurons:
    """What Find Neurons found: the recording, and which entries stand out at the start."""

    state: RunState
    spec: UnlearnSpec
    found: Mapping[str, Mapping[str, Any]]


def run_engine(
    lent: Lent, spec: UnlearnSpec, node: str | None, start: Neurons | None, drawing: int = 0
) -> Ran:
    """Iterate a run to its end; the host's interrupt ends it at the next report.

    drawing: UNet passes of one sample that the node will make after it.
    """
    resume = None if start is None else _taken_up(start, spec)
    run = Unlearning(lent.model, spec, resume)
    ran, curves, fresh = Ran(run), defaultdict(list), []
    bar, watch = Bar(node, run.total), Stopwatch(lent, spec)
    expected = _announced(lent, run, bar, ran, drawing)
    for report in run:
        watch.see(report)
        if report.standing is not None:
            piece = report.stage.removeprefix("unlearning ")
            here = (round(report.standing.effect, 4), round(report.standing.harm, 4))
            curves[piece].append(here)
            fresh.append([piece, len(curves[piece]) - 1, *here])
        picture = None
        if bar.due:
            picture = _picture(lent, spec, report, curves)
            left = bar.remaining(report.done, report.total, expected)
            bar.tell(kind="run", stage=report.stage, done=report.done, total=report.total,
                     left=round(left), steps=followed(spec).steps, points=fresh,
                     neurons=shares(run.neurons))  # fmt: skip
            fresh = []
        bar.update(report.done, report.total, picture)
    watch.remember()
    ran.curves, ran.seconds = dict(curves), time.monotonic() - bar.started
    tell(node, kind="finished", concept=spec.name, seconds=round(ran.seconds))
    return ran


def _announced(lent: Lent, run: Unlearning, bar: Bar, ran: Ran, drawing: int) -> float:
    """Say what a run will take before it starts; returns the seconds."""
    spec, whole = run.spec, lent.model.denoiser is not lent.host
    needed = needs(lent, spec, run.recorded, run.total, whole)
    about = {"kind": "run", "done": 0, "total": run.total, "steps": followed(spec).steps,
             "points": [], "neurons": {}, "needs": needed}  # fmt: skip
    bar.tell(**about, stage="timing", left=None)
    expected = expect(lent, run, drawing)
    bar.tell(**about, stage="", left=round(expected.seconds))
    log.info("unlearning %r is expected to take %s; %s", spec.name, expected, needed)
    ran.said.append(f"It was expected to take {expected}.")
    return expected.seconds


def _picture(lent: Lent, spec: UnlearnSpec, report: StepReport, curves: Any) -> Any:
    """Show the picture that is being recorded, then the curves."""
    if report.standing is None or spec.steps == 1:  # Find Neurons has no curve to show
        return previewed(lent.host.patcher, lent.host.preview)
    return chart(f"Unlearning {spec.name}", curves, followed(spec).steps)


def _taken_up(start: Neurons, spec: UnlearnSpec) -> RunState:
    """Go on from a recording; raises SpecError when it was made for something else."""
    for name in RECORDED:
        if getattr(start.spec, name) != getattr(spec, name):
            raise SpecError(
                f"the neurons were found with other {name}; give Find Neurons and Unlearn the same "
                "concept, seed and settings, or disconnect `neurons`"
            )
    state = start.state
    return replace(
        state, spec=spec.to_json(), offsets={}, neurons={}, final={}, piece="", forgetting={},
        passes=state.recording.passes, backward=0,
    )  # fmt: skip


def found_by(ran: Ran) -> Neurons:
    """Keep a run's recording and first neurons."""
    return Neurons(ran.run.state, ran.run.spec, dict(ran.run.neurons))


def shares(neurons: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the share of each projection's entries that are concept neurons."""
    return {key: round(told["last"] / told["entries"], 5) for key, told in neurons.items()}


def for_browser(ran: Ran) -> dict[str, Any]:
    """Tell a run to the browser: {piece: [[step, effect, harm], ...]}, thinned, and neurons."""
    curves = {}
    for piece, points in ran.curves.items():
        stride = -(-len(points) // SHOWN)
        kept = sorted({*range(0, len(points), stride), len(points) - 1})
        curves[piece] = [[i, *points[i]] for i in kept]
    return {
        "curves": curves,
        "steps": followed(ran.run.spec).steps,
        "neurons": shares(ran.run.neurons),
    }
