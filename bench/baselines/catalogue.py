"""All methods by name, with the settings each is run with and the grid they were chosen from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trust_engine.diff.apply import patched
from trust_engine.spec import KINDS, UnlearnSpec
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.scrubbing.relabel import BACK

from . import ablation, closed_form, combination, esd, hardened, leco, salun, zeroing
from .common import Task, Weights


@dataclass(frozen=True)
class Method:
    """A method: `run(task, settings)` gives new weights; `grid` is its whole search budget.

    grid: changes of the settings, tried on one concept that no table shows (`python -m
    bench.rivals tune`); the best is the default here. kinds: of concepts it was made for. suited:
    the best changes of the same grid on another kind of concept, by kind.
    """

    title: str
    source: str
    run: Callable[[Task, Any], Weights]
    settings: Any
    grid: tuple[Mapping[str, Any], ...] = ({},)
    kinds: tuple[str, ...] = KINDS
    suited: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def settings_for(self, kind: str) -> Any:
        """Return the settings that a concept of this kind is erased with."""
        return self.with_changes(self.suited.get(kind, {})).settings

    def with_changes(self, changes: Mapping[str, Any]) -> Method:
        """Change settings; without changes they may be of any type."""
        return replace(self, settings=replace(self.settings, **changes)) if changes else self


def trust(task: Task, changes: Mapping[str, Any]) -> Weights:
    """Run our own engine with its defaults."""
    run = Unlearning(task.model.lend(), UnlearnSpec((task.concept,), seed=task.seed, **changes))
    before, meter = task.meter.passes, task.meter
    for _ in run:
        pass
    if run.spec.robust:  # it stores what blocks return: a call is less than a pass
        asked = run.knowledge.passes if run.knowledge else 0
        passes = asked + run.passes + BACK * run.backward
        meter.passes, meter.diff = before + passes, run.diff
    return dict(patched(task.model, [(run.diff, 1.0)]).denoiser.overrides)  # type: ignore[attr-defined]


def _grid(**values: tuple[Any, ...]) -> tuple[Mapping[str, Any], ...]:
    """Cross the values of two settings at most: six tries a method."""
    tries: list[dict[str, Any]] = [{}]
    for name, options in values.items():
        tries = [{**one, name: option} for one in tries for option in options]
    return tuple(tries)


RATES = (1e-4, 3e-4, 1e-3)
ESD = esd.Settings(steps=120, rate=1e-4, batch=4)
METHODS: dict[str, Method] = {
    "trust": Method("TRUST (ours)", "arXiv 2602.07919, reconstructed", trust, {}),
    "trust-scrub": Method(
        "TRUST robust (ours)", "ours", trust, {"robust": True}, kinds=("single", "style")
    ),
    "trust-robust": Method("TRUST, all weights trained (replaced)", "ours", hardened.erase, {}),
    "esd-x": Method(
        "ESD-x", "arXiv 2303.07345", lambda t, s: esd.erase(t, "x", s), ESD,
        _grid(rate=RATES, steps=(60, 120)),
    ),
    "esd-u": Method(
        "ESD-u", "arXiv 2303.07345", lambda t, s: esd.erase(t, "u", s), ESD,
        _grid(rate=(3e-5, 1e-4, 3e-4), steps=(60, 120)),
        suited={"style": {"rate": 3e-5, "steps": 60}},
    ),
    "uce": Method(
        "UCE", "arXiv 2308.14761", closed_form.uce, closed_form.Settings(ridge=0.05),
        _grid(keep=(0.1, 1.0), ridge=(0.05, 0.5, 5.0)), suited={"style": {"keep": 0.1}},
    ),
    "rece": Method(
        "RECE", "arXiv 2407.12383", closed_form.rece, closed_form.Settings(nearness=0.01),
        _grid(keep=(0.1, 1.0), nearness=(0.01, 0.1, 1.0)), suited={"style": {"nearness": 0.1}},
    ),
    "ca": Method(
        "CA (concept ablation)", "arXiv 2303.13516", ablation.erase,
        ablation.Settings(steps=160, rate=3e-4, batch=8), _grid(rate=RATES, steps=(80, 160)),
    ),
    "salun": Method(
        "SalUn", "arXiv 2310.12508", salun.erase, salun.Settings(steps=120, rate=3e-4, batch=6),
        _grid(rate=RATES, steps=(60, 120)), suited={"style": {"rate": 1e-4}},
    ),
    "zeroing": Method(
        "Neuron zeroing (ConceptPrune)", "arXiv 2405.19237", zeroing.erase,
        zeroing.Settings(share=0.1), _grid(share=(0.01, 0.03, 0.1), early=(0.5, 1.0)),
        suited={"style": {"early": 1.0}},
    ),
    "cogfd": Method(
        "CoGFD-style", "ICLR 2025, without its language model", combination.erase,
        combination.Settings(steps=130, rate=3e-4, batch=8),
        _grid(rate=RATES, earliest=(990, 700)), ("combination",),
    ),
    "leco": Method(
        "LECO-style LoRA", "p1atdev/LECO", leco.erase, leco.Settings(steps=120, rate=5e-4, batch=4),
        _grid(rate=(5e-4, 2e-3, 5e-3), steps=(60, 120)),
    ),
}  # fmt: skip
