"""The figures every audit has: is the concept gone, and are objects, styles, backgrounds kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...diff import WeightDiff, fingerprint, payload_sha256
from ...diff.apply import patched
from ...models.load import LoadedModel
from ...models.sampler import SamplerSettings
from ..context import AuditContext, Judged, Picture, draw_probes
from ..drawing import Result, Work
from ..judges.base import as_judge
from ..metrics.intervals import Rate, mean_rate
from ..probe_prompts import Probe, ShotList, core_probes
from ..topic import demo_topic

AUDIT_VERSION = 2
Progress = Callable[[int, int], None]


@dataclass
class Findings:
    """What the judge found in one model's pictures."""

    ua: Rate
    synonyms: Rate
    ira: Rate
    cra_style: Rate
    cra_background: Rate
    per_object: dict[str, Rate] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures under the audit's names."""
        named = {
            "ua": self.ua,
            "ira": self.ira,
            "cra_style": self.cra_style,
            "cra_background": self.cra_background,
            "synonyms": self.synonyms,
        }
        figures: dict[str, Any] = {name: rate.to_dict() for name, rate in named.items()}
        figures["per_object"] = {name: rate.to_dict() for name, rate in self.per_object.items()}
        return figures


@dataclass(frozen=True)
class Core:
    """The core findings of one model, with pictures of the target and of what stays."""

    findings: Findings
    target: list[Picture]
    others: list[Picture]
    looked: Judged
    """The retained objects' pictures, in the order of `ShotList.others`."""


def core(
    context: AuditContext, model: LoadedModel, shots: ShotList, compare: bool = False
) -> Work[Core]:
    """Draw every core shot and let the judge count."""
    target = yield from draw_probes(context, model, shots.target)
    synonyms = yield from draw_probes(context, model, shots.synonyms)
    others = yield from draw_probes(context, model, shots.others, compare=compare)
    names = dict.fromkeys(shot.words for shot in shots.others)
    per_object = {
        name: Rate.of(h for h, s in zip(others.hits, shots.others, strict=True) if s.words == name)
        for name in names
    }
    findings = Findings(
        ua=target.gone,
        synonyms=synonyms.gone,
        ira=mean_rate(per_object.values()),
        cra_style=Rate.of(others.style),
        cra_background=Rate.of(others.background),
        per_object=per_object,
    )
    return Core(findings, target.pictures, others.pictures, others)


def look(
    model: LoadedModel,
    judge: Any,
    shots: Sequence[Probe],
    settings: SamplerSettings,
    on_step: Progress | None = None,
) -> tuple[list[bool], list[bool], list[bool]]:
    """Draw shots; tell for each whether all its objects, its style, its background are seen."""
    context = AuditContext({}, as_judge(judge), demo_topic("cat"), settings)
    looked = follow(draw_probes(context, model, shots), settings.passes(len(shots)), on_step)
    return looked.hits, looked.style, looked.background


def audit(
    model: LoadedModel,
    judge: Any,
    diffs: Sequence[tuple[WeightDiff, float]],
    target: str,
    images: int = 4,
    seed: int = 0,
    settings: SamplerSettings | None = None,
    on_step: Progress | None = None,
) -> dict[str, Any]:
    """Measure the core figures of one of the demo's objects; `Audit` measures everything."""
    settings, topic, started = settings or SamplerSettings(), demo_topic(target), time.monotonic()
    shots = core_probes(topic, images, seed)
    models = {"untouched": model, "edited": patched(model, diffs)}
    context = AuditContext(models, as_judge(judge), topic, settings, seed, images)
    count = len(shots.target) + len(shots.synonyms) + len(shots.others)
    total = 2 * settings.passes(count)
    untouched, edited = follow(_both(context, shots), total, on_step)
    return {
        "version": AUDIT_VERSION,
        "concept": target,
        "images_per_object": images,
        "seed": seed,
        **measured(model, diffs),
        **edited.findings.to_dict(),
        "untouched": untouched.findings.to_dict(),
        "cost": {"unet_passes": total, "seconds": round(time.monotonic() - started, 1)},
    }


def measured(model: LoadedModel, diffs: Sequence[tuple[WeightDiff, float]]) -> dict[str, Any]:
    """Name what an audit measures: the base by its fingerprint, diffs by hash and strength."""
    named = [{"sha256": payload_sha256(diff), "strength": strength} for diff, strength in diffs]
    return {"base": fingerprint(model.denoiser), "diffs": named}


def _both(context: AuditContext, shots: ShotList) -> Work[tuple[Core, Core]]:
    untouched = yield from core(context, context.models["untouched"], shots)
    edited = yield from core(context, context.models["edited"], shots)
    return untouched, edited


def follow(work: Work[Result], total: int, on_step: Progress | None = None) -> Result:
    """Do a piece of work to its end, telling `on_step(done, total)`."""
    done = 0
    while True:
        try:
            done += next(work)
        except StopIteration as stop:
            return stop.value
        if on_step:
            on_step(min(done, total), total)
