"""The trajectories that a run records before it trains."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..distributed import Workers
from ..models.contract import Conditioning, LentModel
from ..models.sampler import SamplerSettings, sampled
from ..prompts.concept import PromptSet
from ..spec import UnlearnSpec
from .trajectory import Plan, Recording, plan_recording, record


def sampler_of(spec: UnlearnSpec) -> SamplerSettings:
    """Return how a spec's trajectories are sampled."""
    return sampled(SamplerSettings(spec.trajectory_steps, spec.cfg), spec.sampling)


def plan_of(spec: UnlearnSpec, prompts: PromptSet) -> Plan:
    """Choose which prompts are recorded; raises SpecError when `passes` leaves no room."""
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
    chosen = cond.select(torch.tensor(plan.recorded).to(cond.context.device))
    yield from record(
        model.denoiser, chosen, uncond, sampler_of(spec), model.latent_size, spec.seed,
        model.at_once, team, begun,
    )  # fmt: skip
