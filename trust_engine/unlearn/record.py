"""What a run looks at before it trains: recorded trajectories, or, for robust mode, pictures."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..distributed import Workers
from ..models.contract import Conditioning, LentModel
from ..models.sampler import SamplerSettings, sampled
from ..prompts.concept import PromptSet
from ..spec import UnlearnSpec
from . import robust
from .trajectory import Plan, Recording, plan_recording, record


def sampler_of(spec: UnlearnSpec) -> SamplerSettings:
    """Return how a spec's trajectories are sampled, or its pictures drawn."""
    if spec.robust:
        return robust.settings(spec)
    return sampled(SamplerSettings(spec.trajectory_steps, spec.cfg), spec.sampling)


def plan_of(spec: UnlearnSpec, prompts: PromptSet) -> Plan:
    """Choose which prompts are recorded; raises SpecError when `passes` leaves no room."""
    if spec.robust:
        return Plan(robust.pictured(prompts, spec), torch.empty(0, dtype=torch.long))
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
    if spec.robust:
        yield from robust.draw(lent, cond, uncond, plan.recorded, spec, size, batch, team, begun)
        return
    chosen = cond.select(torch.tensor(plan.recorded).to(cond.context.device))
    how = sampler_of(spec)
    yield from record(lent, chosen, uncond, how, size, spec.seed, batch, team, begun)
