"""ESD: Erasing Concepts from Diffusion Models (Gandikota et al. 2023, arXiv 2303.07345)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trust_engine.models.contract import Conditioning
from trust_engine.models.load import LoadedModel
from trust_engine.models.sampler import SamplerSettings

from .common import Task, Training, Weights, chosen, cross_attention, denoise_to, mse, train


@dataclass(frozen=True)
class Settings(Training):
    """eta: strength of the negative guidance; guidance and sampler_steps: of the states x_t."""

    eta: float = 1.0
    guidance: float = 3.0
    sampler_steps: int = 20


def erase(task: Task, variant: Literal["x", "u"], settings: Settings) -> Weights:
    """Train the prediction under the concept away from it, by negative guidance (equation 8).

    e_theta(x_t, c, t) <- e_0(x_t, t) - eta (e_0(x_t, c, t) - e_0(x_t, t)), on states x_t that the
    model in training draws from c. ESD-x trains cross-attention, ESD-u the linear layers and
    convolutions that are not.
    """
    model, told = task.model, task.encode(task.prompts.targets)
    empty, sampler = task.encode([""]), SamplerSettings(settings.sampler_steps, settings.guidance)

    def loss(student: LoadedModel, _step: int) -> Tensor:
        rows = task.pick(settings.batch, len(told))
        stop = int(task.pick(1, settings.sampler_steps))
        cond, uncond = told.select(rows), empty.select(torch.zeros_like(rows))
        x, t = denoise_to(student, cond, uncond, task.noise(len(rows)), stop, sampler)
        goal = guided_away(model, x, t, cond, uncond, settings.eta)
        return mse(student.denoiser(x, t, cond), goal)

    def trained(name: str) -> bool:
        return (
            cross_attention(name)
            if variant == "x"
            else not (cross_attention(name) or ".norm" in name or "conv_norm" in name)
        )

    start = chosen(model.denoiser, trained)
    return train(task, start, loss, settings.steps, settings.rate)


@torch.no_grad()
def guided_away(
    model: LoadedModel, x: Tensor, t: Tensor, cond: Conditioning, base: Conditioning, eta: float
) -> Tensor:
    """Return e(x, base) - eta (e(x, cond) - e(x, base))."""
    free, told = (model.denoiser(x, t, c).float() for c in (base, cond))
    return free - eta * (told - free)
