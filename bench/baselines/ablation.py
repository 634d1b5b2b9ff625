"""CA: Ablating Concepts in Text-to-Image Diffusion Models (Kumari et al. 2023, 2303.13516)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trust_engine.audit.attacks.base import denoising_loss
from trust_engine.models.load import LoadedModel

from .common import Task, Training, Weights, chosen, keys_and_values, mse, train


@dataclass(frozen=True)
class Settings(Training):
    """images: of the anchor, drawn by the untouched model; regular: weight of its own loss."""

    images: int = 32
    regular: float = 1.0


def erase(task: Task, settings: Settings) -> Weights:
    """Make the prediction under the concept that under its anchor, on the anchor's pictures.

    Equation 5: |e_theta(x_t, c*, t) - sg e_theta(x_t, c, t)|^2 with x_t from pictures of the
    anchor c, plus the usual loss on these (its equation 6); K and V are trained.
    """
    prompts = task.prompts
    pictures, which = task.draw(prompts.anchors, settings.images)
    told, anchored = task.encode(prompts.targets), task.encode(prompts.anchors)
    index, schedule = torch.tensor(which), task.model.denoiser.schedule

    def loss(student: LoadedModel, _step: int) -> Tensor:
        some = task.pick(settings.batch, len(pictures))
        t, noise = task.pick(len(some), 1000).to(task.noise(0).device), task.noise(len(some))
        x0, rows = pictures[some].to(noise), index[some]
        x, anchor = schedule.noised(x0, t, noise), anchored.select(rows)
        with torch.no_grad():
            goal = student.denoiser(x, t, anchor)
        value = mse(student.denoiser(x, t, told.select(rows)), goal)
        if settings.regular:
            own = denoising_loss(student, x0, t, noise, anchor).mean()
            value = value + settings.regular * own
        return value

    start = chosen(task.model.denoiser, keys_and_values)
    return train(task, start, loss, settings.steps, settings.rate)
