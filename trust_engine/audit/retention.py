"""What is kept: objects, neighbours, companions, prompt alignment, nearness to the untouched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conditioning import TextEncoder
from .cells import BOTH, Cell, Outcome, describe
from .core import Core, core
from .drawing import Work
from .figures import mean_figure, mean_rate
from .levels import Level
from .shots import Shot, ShotList, neutral_shots, others_of, pair_shots, retained_shots
from .studio import Looked, Studio, passes_for, shoot
from .topic import Topic, named

NEAR = 5


def core_cell(studio: Studio, shots: ShotList) -> Cell:
    """Measure the core figures of both models, and neighbours and alignment along the way."""
    count = len(shots.target) + len(shots.synonyms) + len(shots.others)
    near = neighbours(studio.topic, studio.models["untouched"].encoder)

    def run(studio: Studio) -> Work[Outcome]:
        found: dict[str, Core] = {}
        for who in BOTH:
            found[who] = yield from core(studio, studio.models[who], shots, compare=True)
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
        extra["distance"] = mean_figure(cosine_distances(looks[0].features, looks[1].features))
        pictures = {
            f"{part}.{who}": getattr(found[who], part)
            for part in ("target", "others")
            for who in BOTH
        }
        return Outcome(figures, pictures, extra)

    return Cell("core", describe(shots.target, studio.settings), 2 * passes_for(studio, count), run)


def retention_cells(studio: Studio, level: Level) -> Iterator[Cell]:
    """List the cells on retention beyond the core."""
    topic, seed = studio.topic, studio.seed
    pairs = pair_shots(topic, level.pairs, seed)
    if pairs:
        yield _kept_cell("retention.companions", studio, pairs)
    if topic.kind == "combination":
        members = member_shots(topic, level.shots, seed)
        yield _kept_cell("retention.members", studio, members)
    yield _neutral_cell(studio, level.neutral)
    yield _negative_cell(studio, level.shots)


def member_shots(topic: Topic, count: int, seed: int) -> list[Shot]:
    """Ask for a combination's members, each by itself."""
    shots = []
    for i, shot in enumerate(retained_shots(topic, "condition", count, seed)):
        name = topic.labels[i % 2]
        shots.append(Shot(name, replace(shot.scene, objects=(name,)), shot.seed))
    return shots


def _kept_cell(name: str, studio: Studio, shots: Sequence[Shot]) -> Cell:
    """Ask how often what should stay is seen, in both models."""

    def run(studio: Studio) -> Work[Outcome]:
        figures, pictures = {}, {}
        for who in BOTH:
            looked = yield from shoot(studio, studio.models[who], shots)
            figures[who], pictures[who] = looked.seen.to_dict(), looked.pictures
        return Outcome(figures, pictures)

    passes = 2 * passes_for(studio, len(shots))
    return Cell(name, describe(shots, studio.settings), passes, run)


def _neutral_cell(studio: Studio, count: int) -> Cell:
    """Ask how far pictures of neutral prompts moved from the untouched model's own.

    The yardstick is the same distance between two seeds of the untouched model.
    """
    shots = neutral_shots(studio.topic, count, studio.seed)

    def run(studio: Studio) -> Work[Outcome]:
        looks = {}
        for who in BOTH:
            looks[who] = yield from shoot(studio, studio.models[who], shots, compare=True)
        figures: dict[str, Any] = {}
        now, was = looks["edited"], looks["untouched"]
        for eye, a, b in (
            (f"judge {studio.judge.name}", was.features, now.features),
            (studio.aligner.name if studio.aligner else "", was.views, now.views),
        ):
            if b:
                figures[eye] = {
                    "edited": mean_figure(cosine_distances(a, b)),
                    "other_seed": mean_figure(cosine_distances(a, a, shift=1)),
                }
        return Outcome(figures, {who: looks[who].pictures for who in BOTH})

    passes = 2 * passes_for(studio, len(shots))
    return Cell("retention.distance", describe(shots, studio.settings), passes, run)


def _negative_cell(studio: Studio, count: int) -> Cell:
    """Ask whether the concept still works as a negative prompt.

    Retained objects are drawn with the concept as the negative prompt: they should be seen as
    often as in the untouched model, and the pictures should not have moved further than without.
    """
    topic = studio.topic
    shots = retained_shots(topic, "negative", count, studio.seed)
    word = topic.word if topic.kind == "style" else named(topic.word)

    def run(studio: Studio) -> Work[Outcome]:
        figures: dict[str, Any] = {"negative": word}
        looks: dict[tuple[str, bool], Looked] = {}
        for who in BOTH:
            for with_it in (False, True):
                looks[who, with_it] = yield from shoot(
                    studio,
                    studio.models[who],
                    shots,
                    negative=word if with_it else None,
                    compare=True,
                )
            figures[who] = looks[who, True].seen.to_dict()
        if looks["edited", True].features:
            for with_it, key in ((False, "distance_without"), (True, "distance_with")):
                was, now = looks["untouched", with_it], looks["edited", with_it]
                figures[key] = mean_figure(cosine_distances(was.features, now.features))
        return Outcome(figures, {who: looks[who, True].pictures for who in BOTH})

    passes = 4 * passes_for(studio, len(shots))
    budget = {**describe(shots, studio.settings), "negative": word}
    return Cell("retention.negative_prompt", budget, passes, run)


def cosine_distances(one: Sequence[Tensor], other: Sequence[Tensor], shift: int = 0) -> list[float]:
    """Return 1 - cosine of unit vectors, pairwise; `shift` compares with a neighbour's instead."""
    if not one or not other:
        return []
    a, b = torch.stack(list(one)), torch.stack(list(other))
    return (1 - (a * b.roll(shift, 0)).sum(1)).clamp(min=0).tolist()


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
