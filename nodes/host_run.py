"""One run of the engine under the host's progress bar, with curves for the charts."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..trust_engine.errors import SpecError
from ..trust_engine.models.identity import model_identity, probe
from ..trust_engine.spec import UnlearnSpec
from ..trust_engine.unlearn.autosave import Keeping
from ..trust_engine.unlearn.run import StepReport, Unlearning
from ..trust_engine.unlearn.run_state import RunState
from .charts import chart
from .drawing import previewed
from .estimate import Stopwatch, expect, needs
from .lending import Lent
from .progress import Bar, tell
from .runs import store

log = logging.getLogger(__name__)
SHOWN = 60  # points of a finished curve in the browser
# What decides what is recorded.
RECORDED = ("concepts", "trajectory_steps", "cfg", "passes", "robust", "sampling", "seed")


@dataclass
class Ran:
    """A finished run, its curves by piece, how long it took, and what there is to say."""

    run: Unlearning
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Neurons:
    """What Find Neurons found: the recording, which entries stand out, and in what model."""

    state: RunState
    spec: UnlearnSpec
    found: Mapping[str, Mapping[str, Any]]
    model: str


def run_engine(
    lent: Lent,
    spec: UnlearnSpec,
    node: str | None,
    start: Neurons | None,
    drawing: int = 0,
    keep: bool = False,
) -> Ran:
    """Iterate a run to its end; the host's interrupt ends it at the next report.

    drawing: UNet passes of one sample that the node will make after it; keep: keep the run on disk
    while it works, and go on with one that was kept.
    """
    run = Unlearning(lent.model, spec)
    if start is not None:
        run.resume = _taken_up(start, spec, lent, run)
    ran = Ran(run)
    said = Saying(node, ran)
    with Keeping(run, store() if keep else None, say=said) as kept:
        bar, watch = Bar(node, run.total), Stopwatch(lent, run.plan)
        expected = 0.0 if kept.recalled else _announced(lent, run, bar, ran, drawing)
        sent: dict[str, int] = {}
        for report in kept:
            watch.see(report)
            picture = None
            if bar.due:
                picture = _picture(lent, run, report)
                left = bar.remaining(report.done, report.total, expected)
                bar.tell(kind="run", stage=report.stage, done=report.done, total=report.total,
                         left=round(left), steps=run.steps,
                         points=_fresh(run.curves, sent), neurons=shares(run.neurons))  # fmt: skip
            bar.update(report.done, report.total, picture)
    if not kept.said:  # it took its whole time here
        watch.remember()
    ran.curves = {piece: [_rounded(here) for here in curve] for piece, curve in run.curves.items()}
    ran.seconds = time.monotonic() - bar.started
    tell(node, kind="finished", concept=spec.name, seconds=round(ran.seconds))
    return ran


@dataclass
class Saying:
    """What keeping a run has to say goes to the log, the browser and the report."""

    node: str | None
    ran: Ran

    def __call__(self, text: str) -> None:
        log.info("%s", text)
        tell(self.node, kind="notice", text=text)
        self.ran.said.append(f"{text[0].upper()}{text[1:]}.")


def _rounded(here: tuple[float, float]) -> tuple[float, float]:
    return round(here[0], 4), round(here[1], 4)


def _fresh(
    curves: Mapping[str, list[tuple[float, float]]], sent: dict[str, int]
) -> list[list[Any]]:
    """Return the points that the browser has not been sent: [piece, step, effect, harm]."""
    fresh = []
    for piece, curve in curves.items():
        fresh += [[piece, i, *_rounded(curve[i])] for i in range(sent.get(piece, 0), len(curve))]
        sent[piece] = len(curve)
    return fresh


def _announced(lent: Lent, run: Unlearning, bar: Bar, ran: Ran, drawing: int) -> float:
    """Say what a run will take before it starts; returns the seconds."""
    spec, whole = run.spec, lent.model.denoiser is not lent.host
    needed = needs(lent, run, whole)
    about = {"kind": "run", "done": 0, "total": run.total, "steps": run.steps,
             "points": [], "neurons": {}, "needs": needed}  # fmt: skip
    bar.tell(**about, stage="timing", left=None)
    expected = expect(lent, run, drawing)
    bar.tell(**about, stage="", left=round(expected.seconds))
    log.info("unlearning %r is expected to take %s; %s", spec.name, expected, needed)
    ran.said.append(f"It was expected to take {expected}.")
    return expected.seconds


def _picture(lent: Lent, run: Unlearning, report: StepReport) -> Any:
    """Show the picture that is being recorded, then the curves."""
    if report.standing is None or run.spec.steps == 1:  # Find Neurons has no curve to show
        return previewed(lent.host.patcher, lent.host.preview)
    return chart(f"Unlearning {run.spec.name}", run.curves, run.steps)


def _taken_up(start: Neurons, spec: UnlearnSpec, lent: Lent, run: Unlearning) -> RunState:
    """Go on from a recording; raises SpecError when it was made for something else."""
    for name in RECORDED:
        if getattr(start.spec, name) != getattr(spec, name):
            raise SpecError(
                f"the neurons were found with other {name}; give Find Neurons and Unlearn the same "
                "concept, seed and settings, or disconnect `neurons`"
            )
    if start.model != recorded_with(lent, run):
        raise SpecError(
            "the neurons were found in another model; give Find Neurons and Unlearn the same MODEL "
            "and CLIP, or disconnect `neurons`"
        )
    state = start.state
    return replace(
        state, spec=spec.to_json(), base=run.identity, offsets={}, neurons={}, final={}, piece="",
        forgetting={}, curves={}, passes=state.recording.passes, backward=0,
    )  # fmt: skip


def recorded_with(lent: Lent, run: Unlearning) -> str:
    """Hash what a recording hangs on: the host's model, whatever copy of it is trained."""
    cond, uncond = run.encoded
    size = lent.model.latent_size
    more = probe(lent.host, cond, size)
    return model_identity(lent.host, size, run.prompts.targets, cond, uncond, more)


def found_by(ran: Ran, lent: Lent) -> Neurons:
    """Keep a run's recording and first neurons."""
    model = recorded_with(lent, ran.run)
    return Neurons(ran.run.state, ran.run.spec, dict(ran.run.neurons), model)


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
        "steps": ran.run.steps,
        "neurons": shares(ran.run.neurons),
    }
