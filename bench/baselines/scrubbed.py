"""Scrubbing as a method of the benchmark: which pictures it is shown, and its settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from trust_engine.prompts.concept import PromptSet, build_prompts
from trust_engine.unlearn.scrubbing.lists import picture_lists
from trust_engine.unlearn.scrubbing.pictures import Recipe, drawn, noised
from trust_engine.unlearn.scrubbing.run import Scrubbing, ScrubPlan
from trust_engine.unlearn.scrubbing.samples import Drawn

from .common import Task, Weights


@dataclass(frozen=True)
class Settings:
    """How pictures are made, and how much is taken out."""

    recipe: Recipe = field(default_factory=Recipe)
    plan: ScrubPlan = field(default_factory=ScrubPlan)


def prompts_of(task: Task) -> PromptSet:
    """Write the engine's prompts; beside a style, what stays names another one."""
    if task.concept.kind != "style":
        return task.prompts
    model = task.model
    return build_prompts([task.concept], model.encoder, model.vocabulary, model.styles, True)


def pictures(task: Task, recipe: Recipe) -> tuple[Drawn, int, int]:
    """Draw what a recipe asks for: (what was drawn, how many of the concept, passes)."""
    lists, model = picture_lists(task.concept, prompts_of(task), recipe.counts), task.model
    for passes, found in drawn(
        model.denoiser, model.encoder, model.latent_size, lists, recipe, task.seed
    ):
        if found is not None:
            return found, len(lists.concept), passes
    raise AssertionError("drawing ends with what was drawn")


def scrubbing(task: Task, settings: Settings, found: Drawn, own: int) -> Scrubbing:
    """Prepare a scrubbing on pictures, of which the first `own` show the concept."""
    model = task.model
    kinds = noised(model.denoiser, model.encoder, found, own, settings.recipe, task.seed)
    return Scrubbing(model.denoiser, *kinds, settings.plan)


def erase(task: Task, settings: Settings) -> Weights:
    """Draw lone pictures of the concept, and of other things alone and in pairs; then scrub."""
    found, own, _ = pictures(task, settings.recipe)
    work, before = scrubbing(task, settings, found, own), task.meter.passes
    for _ in work:
        pass
    # The meter counts calls; a call that computes two blocks of n is 2 / n passes.
    task.meter.passes = before + work.passes
    return work.weights
