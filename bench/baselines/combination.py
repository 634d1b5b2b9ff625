"""CoGFD-style erasing of combinations (Nie et al., ICLR 2025), without its language model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trust_engine.models.load import LoadedModel

from .common import Task, Training, Weights, chosen, cross_attention, mse, train


@dataclass(frozen=True)
class Settings(Training):
    """earliest: the least timestep trained on; push: weight of leaving the combination."""

    earliest: int = 990
    push: float = 0.1


def erase(task: Task, settings: Settings) -> Weights:
    """Decouple a combination from its members on high-level features: the noisiest timesteps.

    Minimises push exp(-D(c)) + exp(D(m)) with D(p) = |e_theta(x_t, p) - e_0(x_t, p)|^2, c the
    combination and m its members and whatever else must stay: the one leaves what the untouched
    model says, the others do not. At these timesteps x_t is all but pure noise, so noise is taken.
    The authors' concept graph, written by a language model, is replaced by the prompts that all
    methods here are told.
    """
    prompts, model = task.prompts, task.model
    told, stay = task.encode(prompts.targets), task.encode(prompts.preserve)

    def loss(student: LoadedModel, _step: int) -> Tensor:
        rows, others = task.pick(settings.batch, len(told)), task.pick(settings.batch, len(stay))
        x = task.noise(len(rows))
        t = (settings.earliest + task.pick(len(rows), 1000 - settings.earliest)).to(x.device)
        moved = []
        for cond in (told.select(rows), stay.select(others)):
            with torch.no_grad():
                same = model.denoiser(x, t, cond)
            moved.append(mse(student.denoiser(x, t, cond), same))
        return settings.push * torch.exp(-moved[0]) + torch.exp(moved[1])

    # At theta_0 both distances have no slope: a start beside it breaks the tie.
    start = chosen(model.denoiser, cross_attention)
    for weight in start.values():
        chance = torch.randn(weight.shape, generator=task.generator).to(weight.device)
        weight += 1e-3 * weight.std(correction=0) * chance
    return train(task, start, loss, settings.steps, settings.rate)
