"""Scrubbing as a method of the benchmark: which pictures it is shown, and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trust_engine.phrases import with_article
from trust_engine.prompts.templates import PAIRS
from trust_engine.unlearn.scrub import Scrubbing, ScrubPlan, Shown

from .common import Task, Weights


@dataclass(frozen=True)
class Settings:
    """concept, rest: pictures drawn of either; pairs: the share of the rest with two things."""

    concept: int = 64
    rest: int = 192
    pairs: float = 0.5
    plan: ScrubPlan = field(default_factory=ScrubPlan)


def erase(task: Task, settings: Settings) -> Weights:
    """Draw lone pictures of the concept, and of other things alone and in pairs; then scrub."""
    concept = _drawn(task, task.prompts.targets, settings.concept)
    pairs = round(settings.pairs * settings.rest)
    lone = _spread(task.prompts.preserve, settings.rest - pairs)
    rest = _drawn(task, [*lone, *_pairs(task, pairs)], settings.rest)
    work = Scrubbing(
        task.model.denoiser, concept, rest, task.encode([""]), settings.plan, task.seed
    )
    for _ in work:
        pass
    return work.weights


def _drawn(task: Task, prompts: Sequence[str], count: int) -> Shown:
    latents, which = task.draw(prompts, count)
    return Shown(latents, task.encode([prompts[i] for i in which]))


def _spread(prompts: Sequence[str], count: int) -> list[str]:
    """Take an evenly spread subset, or the prompts again and again."""
    return [prompts[i * len(prompts) // count] for i in range(count)]


def _pairs(task: Task, count: int) -> list[str]:
    """Write pairs of things that are not the concept."""
    gone = {*task.concept.words, task.concept.companion}
    things = [with_article(word) for word in task.model.vocabulary if word not in gone]
    firsts = task.pick(count, len(things)).tolist()
    apart = (1 + task.pick(count, len(things) - 1)).tolist()
    return [
        PAIRS[i % len(PAIRS)].format(things[a], things[(a + b) % len(things)])
        for i, (a, b) in enumerate(zip(firsts, apart, strict=True))
    ]
