"""Scrubbing with settings that a run does not offer, for trials: `bench.scrub`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from trust_engine.models.parameters import exchanged
from trust_engine.prompts.concept import PromptSet, build_prompts
from trust_engine.spec import UnlearnSpec
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.scrubbing.noised import Drawn
from trust_engine.unlearn.scrubbing.picture_lists import picture_lists
from trust_engine.unlearn.scrubbing.pictures import Recipe, draw, noised
from trust_engine.unlearn.scrubbing.run import Scrubbing, ScrubPlan

from .common import Task, Weights

Order = Literal["no", "before", "after"]


@dataclass(frozen=True)
class Settings:
    """How pictures are made, and how much is taken out.

    layerwise: whether the default mode is run as well, and then in which order.
    """

    recipe: Recipe = field(default_factory=Recipe)
    plan: ScrubPlan = field(default_factory=ScrubPlan)
    layerwise: Order = "no"


def prompts_of(task: Task) -> PromptSet:
    """Write the engine's prompts; beside a style, what stays names another one."""
    if task.concept.kind != "style":
        return task.prompts
    model = task.model
    return build_prompts([task.concept], model.encoder, model.vocabulary, model.styles, True)


def pictures(task: Task, recipe: Recipe) -> tuple[Drawn, list[int], int]:
    """Draw what a recipe asks for: (what was drawn, how many of each kind, passes)."""
    lists = picture_lists([task.concept], prompts_of(task), recipe.counts)
    model, cond = task.model, task.encode(lists.prompts)
    *_, drawn = draw(
        model.denoiser, cond, task.encode([""]), recipe.sampler, model.latent_size, task.seed,
        model.lend().at_once,
    )  # fmt: skip
    return Drawn.of(drawn, cond), lists.counts, drawn.passes


def scrubbing(
    task: Task, settings: Settings, found: Drawn, counts: list[int], start: Weights | None = None
) -> Scrubbing:
    """Prepare a scrubbing on pictures, as many of each kind as `counts` says."""
    kinds = noised(
        task.model.denoiser, task.encode([""]), found, counts, settings.recipe, task.seed
    )
    return Scrubbing(task.model.denoiser, *kinds, settings.plan, start=start)


def layerwise(task: Task, base: Weights | None = None) -> Weights:
    """Run the default mode, on a model with some of its weights replaced: the new weights."""
    base, module = base or {}, task.model.denoiser.module
    standing = {name: nn.Parameter(w, requires_grad=False) for name, w in base.items()}
    with exchanged(module, standing):
        run = Unlearning(task.model.lend(), UnlearnSpec((task.concept,), seed=task.seed))
        for _ in run:
            pass
    weights = dict(base)
    for key, offset in run.diff.offsets.items():
        name = task.model.denoiser.parameter_name(key)
        before = base.get(name, module.get_parameter(name).detach())
        weights[name] = before.float() + offset.dense()
    return weights
