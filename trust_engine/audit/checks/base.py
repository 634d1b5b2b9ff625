"""A check, or cell: one question of an audit, answered by itself, saved by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...models.sampler import SamplerSettings
from ..context import AuditContext, Picture, draw_probes
from ..drawing import Canvas, Work, passes_of
from ..probe_prompts import Probe

BOTH = ("untouched", "edited")


@dataclass(frozen=True)
class CheckResult:
    """A finished cell: its figures, and rows of pictures by their title."""

    figures: dict[str, Any]
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    """What other cells or the page may need, and audit.json does not show."""


@dataclass(frozen=True)
class Check:
    """One question. `name` is its place in audit.json; `budget` is all that decides its answer."""

    name: str
    budget: dict[str, Any]
    passes: int
    run: Callable[[AuditContext], Work[CheckResult]]
    alone: bool = False
    """Whether one process does all of it: what it draws hangs on what it found."""


def gone_cell(
    name: str,
    context: AuditContext,
    shots: Sequence[Probe],
    settings: SamplerSettings | None = None,
    strength: float | None = None,
) -> Check:
    """Ask how often the concept is absent where it was asked for, in both models.

    strength: redraw pictures of the concept by this share (image-to-image) instead of noise.
    """
    used = settings or context.settings
    passes, budget = 2 * passes_of(used, len(shots), strength or 1.0), describe(shots, used)
    if strength is not None:
        passes += context.bait_passes(len(shots))
        budget["strength"] = strength

    def run(context: AuditContext) -> Work[CheckResult]:
        figures, pictures, canvas = {}, {}, None
        if strength is not None:
            bait = yield from context.bait(len(shots))
            canvas = Canvas(bait.latents, strength)
        for who in BOTH:
            looked = yield from draw_probes(context, context.models[who], shots, settings, canvas)
            figures[who] = looked.gone.to_dict()
            pictures[who] = looked.pictures
        return CheckResult(figures, pictures)

    return Check(name, budget, passes, run)


def describe(shots: Sequence[Probe], settings: SamplerSettings) -> dict[str, Any]:
    """Say how pictures are drawn."""
    return {
        "images": len(shots),
        "sampler": settings.sampler,
        "steps": settings.steps,
        "cfg": settings.cfg,
    }
