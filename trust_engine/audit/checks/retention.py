"""What is kept: objects, neighbours, companions, prompt alignment, nearness to the untouched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.contract import TextEncoder
from ..context import AuditContext, Judged, draw_probes, passes_for
from ..drawing import Work
from ..levels import Level
from ..metrics.images import distances, set_distance
from ..metrics.intervals import mean_figure, mean_rate
from ..probe_prompts import (
    Probe,
    ShotList,
    member_shots,
    neutral_shots,
    others_of,
    pair_probes,
    retained_shots,
)
from ..topic import Topic, named
from .base import BOTH, Check, CheckResult, describe
from .core import Core, core

NEAR = 5


def core_cell(context: AuditContext, shots: ShotList) -> Check:
    """Measure the core figures of both models, and neighbours and alignment along the way."""
    count = len(shots.target) + len(shots.synonyms) + len(shots.others)
    near = neighbours(context.topic, context.models["untouched"].encoder)

    def run(context: AuditContext) -> Work[CheckResult]:
        found: dict[str, Core] = {}
        for who in BOTH:
            found[who] = yield from core(context, context.models[who], shots, compare=True)
        figures = {who: found[who].findings.to_dict() for who in BOTH}
        extra: dict[str, Any] = {"neighbours": {"names": near}}
        for who in BOTH:
            rates = found[who].findings.per_object
            pooled = mean_rate(rates[name] for name in near if name in rates)
            extra["neighbours"][who] = pooled.to_dict()
        looks = [found[who].looked for who in BOTH]
        extra["alignment"] = {
            who: mean_figure(look.alignment) for who, look in zip(BOTH, looks, strict=True)
        }
        extra["distance"] = {
            eye: {"pictures": mean_figure(distances(was, now)), "set": set_distance(was, now)}
            for eye, was, now in both_views(*looks)
        }
        pictures = {
            f"{part}.{who}": getattr(found[who], part)
            for part in ("target", "others")
            for who in BOTH
        }
        return CheckResult(figures, pictures, extra)

    return Check(
        "core", describe(shots.target, context.settings), 2 * passes_for(context, count), run
    )


def retention_cells(context: AuditContext, level: Level) -> Iterator[Check]:
    """List the cells on retention beyond the core; without guidance nothing is led away from."""
    topic, seed = context.topic, context.seed
    pairs = pair_probes(topic, level.pairs, seed)
    if pairs:
        yield _kept_cell("retention.companions", context, pairs)
    if topic.kind in ("combination", "conditional"):
        members = member_shots(topic, 2 * level.shots, seed)
        yield _kept_cell("retention.members", context, members)
    yield _neutral_cell(context, level.neutral)
    if not context.settings.distilled:
        yield _negative_cell(context, level.shots)


def _kept_cell(name: str, context: AuditContext, shots: Sequence[Probe]) -> Check:
    """Ask how often what should stay is seen, in both models."""

    def run(context: AuditContext) -> Work[CheckResult]:
        figures, pictures = {}, {}
        for who in BOTH:
            looked = yield from draw_probes(context, context.models[who], shots)
            figures[who], pictures[who] = looked.seen.to_dict(), looked.pictures
        return CheckResult(figures, pictures)

    passes = 2 * passes_for(context, len(shots))
    return Check(name, describe(shots, context.settings), passes, run)


def _neutral_cell(context: AuditContext, count: int) -> Check:
    """Ask how far pictures of neutral prompts moved from the untouched model's own.

    The yardstick is the same distance between two seeds of the untouched model.
    """
    shots = neutral_shots(context.topic, count, context.seed)

    def run(context: AuditContext) -> Work[CheckResult]:
        looks = {}
        for who in BOTH:
            looks[who] = yield from draw_probes(context, context.models[who], shots, compare=True)
        figures: dict[str, Any] = {}
        for eye, was, now in both_views(looks["untouched"], looks["edited"]):
            figures[eye] = {
                "edited": mean_figure(distances(was, now)),
                "other_seed": mean_figure(distances(was, was, shift=1)),
            }
        return CheckResult(figures, {who: looks[who].pictures for who in BOTH})

    passes = 2 * passes_for(context, len(shots))
    return Check("retention.distance", describe(shots, context.settings), passes, run)


def _negative_cell(context: AuditContext, count: int) -> Check:
    """Ask whether the concept still works as a negative prompt.

    Retained objects are drawn with the concept as the negative prompt: they should be seen as
    often as in the untouched model, and the pictures should not have moved further than without.
    """
    topic = context.topic
    shots = retained_shots(topic, "negative", count, context.seed)
    word = topic.word if topic.kind == "style" else named(topic.word)

    def run(context: AuditContext) -> Work[CheckResult]:
        figures: dict[str, Any] = {"negative": word}
        looks: dict[tuple[str, bool], Judged] = {}
        for who in BOTH:
            for with_it in (False, True):
                looks[who, with_it] = yield from draw_probes(
                    context,
                    context.models[who],
                    shots,
                    negative=word if with_it else None,
                    compare=True,
                )
            figures[who] = looks[who, True].seen.to_dict()
        for with_it, key in ((False, "distance_without"), (True, "distance_with")):
            views = both_views(looks["untouched", with_it], looks["edited", with_it])
            found = {eye: mean_figure(distances(was, now)) for eye, was, now in views}
            if found:
                figures[key] = found
        return CheckResult(figures, {who: looks[who, True].pictures for who in BOTH})

    passes = 4 * passes_for(context, len(shots))
    budget = {**describe(shots, context.settings), "negative": word}
    return Check("retention.negative_prompt", budget, passes, run)


def both_views(was: Judged, now: Judged) -> list[tuple[str, list[Tensor], list[Tensor]]]:
    """Pair what each eye saw in both models' pictures."""
    return [(eye, was.views[eye], seen) for eye, seen in now.views.items()]


def neighbours(topic: Topic, encoder: TextEncoder, count: int = NEAR) -> list[str]:
    """Name the retained objects nearest to the concept in the text encoder's last hidden state."""
    names = others_of(topic)
    if not names:
        return []
    with torch.no_grad():
        states = encoder.encode([named(word) for word in (topic.word, *names)]).context
    # The last position has read the whole prompt in a causal text encoder.
    summary: Tensor = F.normalize(states[:, -1].float(), dim=-1)
    order = (summary[1:] @ summary[0]).argsort(descending=True, stable=True)
    return [names[int(i)] for i in order[:count]]
