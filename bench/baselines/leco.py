"""LECO: low-rank adaptation for erasing concepts (p1atdev 2023), ESD's loss on a LoRA."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trust_engine.models.load import LoadedModel
from trust_engine.models.sampler import SamplerSettings

from .common import Task, Training, Weights, chosen, denoise_to, mse, train

LAYERS = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")


@dataclass(frozen=True)
class Settings(Training):
    """rank: of the LoRA on every attention layer; guidance: of the push away from the concept."""

    rank: int = 4
    guidance: float = 1.0
    sampler_guidance: float = 3.0
    sampler_steps: int = 20


def erase(task: Task, settings: Settings) -> Weights:
    """Train W + B A (Hu et al. 2021, arXiv 2106.09685) against the concept.

    e_theta(x_t, target) <- e_0(x_t, neutral) - guidance (e_0(x_t, positive) - e_0(x_t, empty)),
    with positive = target and neutral the prompt's anchor, on states that the adapted model draws
    from the target.
    """
    prompts, model = task.prompts, task.model
    told, neutral = task.encode(prompts.targets), task.encode(prompts.anchors)
    empty = task.encode([""])
    sampler = SamplerSettings(settings.sampler_steps, settings.sampler_guidance)
    base = chosen(model.denoiser, lambda name: name.endswith(LAYERS))

    def loss(student: LoadedModel, _step: int) -> Tensor:
        rows = task.pick(settings.batch, len(told))
        stop = int(task.pick(1, settings.sampler_steps))
        cond, uncond = told.select(rows), empty.select(torch.zeros_like(rows))
        x, t = denoise_to(student, cond, uncond, task.noise(len(rows)), stop, sampler)
        with torch.no_grad():
            told_0, free_0, plain_0 = (
                model.denoiser(x, t, c).float() for c in (cond, uncond, neutral.select(rows))
            )
            goal = plain_0 - settings.guidance * (told_0 - free_0)
        return mse(student.denoiser(x, t, cond), goal)

    start: Weights = {}
    for name, w in base.items():
        down = torch.randn(settings.rank, w.shape[1], generator=task.generator)
        start[f"{name} down"] = (down / w.shape[1] ** 0.5).to(w.device)
        start[f"{name} up"] = torch.zeros(w.shape[0], settings.rank, device=w.device)

    def merged(trained: Weights) -> Weights:
        return {n: w + trained[f"{n} up"] @ trained[f"{n} down"] for n, w in base.items()}

    return train(task, start, loss, settings.steps, settings.rate, read=merged)
