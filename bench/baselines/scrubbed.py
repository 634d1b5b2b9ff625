"""Scrubbing with settings that a run does not offer, for trials: `bench.scrub`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn

from trust_engine.models.parameters import exchanged
from trust_engine.prompts.concept import PromptSet, build_prompts
from trust_engine.spec import UnlearnSpec
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.scrubbing.noised import Drawn
from trust_engine.unlearn.scrubbing.picture_lists import PictureLists, picture_lists
from trust_engine.unlearn.scrubbing.picture_stage import offsets_of
from trust_engine.unlearn.scrubbing.pictures import Recipe, draw, noised
from trust_engine.unlearn.scrubbing.relabel import Relabelling, RelabelPlan
from trust_engine.unlearn.scrubbing.run import Scrubbing, ScrubPlan

from .common import Task, Weights

Order = Literal["no", "before", "after"]


@dataclass(frozen=True)
class Settings:
    """How pictures are made, and how much is taken out.

    layerwise: whether the default mode is run as well, and then in which order; relabel: how the
    scrubbed layers are trained, if at all.
    """

    recipe: Recipe = field(default_factory=Recipe)
    plan: ScrubPlan = field(default_factory=ScrubPlan)
    layerwise: Order = "no"
    relabel: RelabelPlan | None = None


def prompts_of(task: Task) -> PromptSet:
    """Write the engine's prompts; beside a style, what stays names another one."""
    if task.concept.kind != "style":
        return task.prompts
    model = task.model
    return build_prompts([task.concept], model.encoder, model.vocabulary, model.styles, True)


def lists_of(task: Task, settings: Settings) -> PictureLists:
    """Choose what is drawn; anchors, if there is something to relabel."""
    lists = picture_lists([task.concept], prompts_of(task), settings.recipe.counts)
    return lists if settings.relabel else replace(lists, anchors=())


def pictures(task: Task, recipe: Recipe, lists: PictureLists) -> tuple[Drawn, int]:
    """Draw what a recipe asks for, and count the passes."""
    model, cond = task.model, task.encode(lists.prompts)
    *_, drawn = draw(
        model.denoiser, cond, task.encode([""]), recipe.sampler, model.latent_size, task.seed,
        model.lend().at_once, numbers=lists.noises,
    )  # fmt: skip
    return Drawn.of(drawn, cond), drawn.passes


def scrubbing(
    task: Task,
    settings: Settings,
    found: Drawn,
    lists: PictureLists,
    start: Weights | None = None,
) -> Scrubbing:
    """Prepare a scrubbing on pictures of the lists' prompts."""
    concepts, rest, _ = lists.places
    shown = found.rows(torch.tensor([*concepts, *rest]))
    denoiser, uncond = task.model.denoiser, task.encode([""])
    kinds = noised(denoiser, uncond, shown, lists.counts, settings.recipe, task.seed)
    return Scrubbing(denoiser, *kinds, settings.plan, start=start)


def relabelled(
    task: Task, plan: RelabelPlan, found: Drawn, lists: PictureLists, work: Scrubbing
) -> Weights:
    """Train what was scrubbed: the new weights."""
    denoiser = task.model.denoiser
    concepts, rest, anchors = (found.rows(torch.tensor(places)) for places in lists.places)
    offsets = offsets_of(work.edits)
    training = Relabelling(
        denoiser, offsets, concepts, anchors, rest, task.encode([""]), plan, task.seed, plan.batch
    )
    for _ in training:
        pass
    return {
        name: denoiser.module.get_parameter(name).detach().float() + offset.dense()
        for key, offset in training.offsets.items()
        for name in [denoiser.parameter_name(key)]
    }


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
