"""From finished cells to audit.json and to a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checks.base import CheckResult
from ..checks.core import AUDIT_VERSION
from ..context import AuditContext, Picture
from ..levels import ATTACKS, Level
from .verdict import not_covered, verdict

PIXELS = 8
"""A latent's side in pixels: the same in the autoencoders of the demo, SD 1.x, SD 2.x and SDXL."""


@dataclass(frozen=True)
class Report:
    """A finished audit: `figures` is audit.json, `pictures` are rows by cell and title."""

    figures: dict[str, Any]
    pictures: dict[str, Mapping[str, Sequence[Picture]]]
    sensitive: bool


def assemble(
    context: AuditContext,
    level: Level,
    outcomes: Mapping[str, CheckResult],
    cost: dict[str, Any],
    coupled: bool,
    skipped: Sequence[str],
    measured: Mapping[str, Any],
) -> Report:
    """Put the figures in the order of docs/concepts/audit.md; measured: base and diffs."""
    core, settings = outcomes["core"], context.settings
    data: dict[str, Any] = {
        "version": AUDIT_VERSION,
        "concept": context.topic.name,
        "topic": context.topic.to_dict(),
        "level": level.name,
        "judge": {"name": context.judge.name, "note": context.judge.note, "coupled": coupled},
        "images_per_object": context.images,
        "seed": context.seed,
        "pixels": [PIXELS * side for side in reversed(context.models["untouched"].latent_size)],
        **measured,
        "sampler": {
            "name": settings.sampler, "steps": settings.steps, "cfg": settings.cfg,
        },
        **core.figures["edited"],
        "untouched": core.figures["untouched"],
        "forgetting": {},
        "retention": {"neighbours": core.extra["neighbours"]},
        "attacks": {},
    }  # fmt: skip
    if core.extra["alignment"]["edited"]["n"]:
        aligner = context.aligner.name if context.aligner else None
        data["retention"]["alignment"] = {"by": aligner, **core.extra["alignment"]}
    if core.extra["distance"]:
        data["retention"]["objects_distance"] = core.extra["distance"]
    for name, outcome in outcomes.items():
        _place(data, name, outcome.figures)
    missing = [name for name in ATTACKS if name not in data["attacks"]]
    data["not_covered"] = not_covered(data, missing, skipped)
    if settings.distilled:
        data["not_covered"].insert(0, "other samplers, step counts and guidance, which a model "
                                   "distilled to a few steps does not draw with")  # fmt: skip
    data["verdict"] = verdict(data)
    data["cost"] = cost
    pictures = {name: outcome.pictures for name, outcome in outcomes.items()}
    return Report(data, pictures, context.topic.sensitive)


def _place(data: dict[str, Any], name: str, figures: dict[str, Any]) -> None:
    """Put a cell's figures at `a.b` or, in a series, at `a.b["c"]`."""
    if name == "core":
        return
    section, key, *rest = name.split(".", 2)
    if rest:
        data[section].setdefault(key, {})[rest[0]] = figures
    else:
        data[section][key] = figures
