"""What a run looks at before it trains: recorded trajectories, or, in robust mode, pictures."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..distributed import Workers
from ..models.contract import Conditioning, LentModel
from ..models.sampler import SamplerSettings, sampled
from ..prompts.concept import PromptSet
from ..spec import UnlearnSpec
from .scrubbing.mode import lists_of
from .scrubbing.pictures import draw, recipe_of
from .trajectory import Plan, Recording, plan_recording, record


def sampler_of(spec: UnlearnSpec) -> SamplerSettings:
    """Return how a spec's trajectories are sampled, or its pictures drawn."""
    if spec.robust:
        return recipe_of(spec).sampler
    return sampled(SamplerSettings(spec.trajectory_steps, spec.cfg), spec.sampling)


def texts_of(spec: UnlearnSpec, prompts: PromptSet) -> tuple[str, ...]:
    """List what a run encodes: its prompts, or, in robust mode, those that it draws."""
    return lists_of(spec, prompts).prompts if spec.robust else prompts.texts


def plan_of(spec: UnlearnSpec, prompts: PromptSet) -> Plan:
    """Choose which prompts are recorded; raises SpecError when `passes` leaves no room."""
    if spec.robust:
        every = range(len(texts_of(spec, prompts)))
        return Plan(list(every), torch.empty(0, dtype=torch.long))
    room = spec.passes // sampler_of(spec).passes(1)
    return plan_recording(len(prompts.targets), len(prompts.preserve), room)


def recorded(
    model: LentModel,
    spec: UnlearnSpec,
    plan: Plan,
    cond: Conditioning,
    uncond: Conditioning,
    team: Workers,
    begun: Recording | None = None,
) -> Iterator[Recording]:
    """Record what the plan says, or the rest of it; yields the growing recording."""
    lent, size = model.denoiser, model.latent_size
    batch = model.at_once
    how = sampler_of(spec)
    if spec.robust:
        yield from draw(lent, cond, uncond, how, size, spec.seed, batch, team, begun)
        return
    chosen = cond.select(torch.tensor(plan.recorded).to(cond.context.device))
    yield from record(lent, chosen, uncond, how, size, spec.seed, batch, team, begun)
