"""SalUn: gradient-based weight saliency and random labels (Fan et al. 2023, arXiv 2310.12508)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trust_engine.audit.attacks.base import denoising_loss
from trust_engine.models.load import LoadedModel

from .common import Task, Training, Weights, chosen, mse, train


@dataclass(frozen=True)
class Settings(Training):
    """share: of the UNet's entries that may move; keep: weight of the retained pictures.

    guidance: of the prediction whose loss gives the saliency.
    """

    images: int = 24
    share: float = 0.5
    keep: float = 1.0
    guidance: float = 7.5


def erase(task: Task, settings: Settings) -> Weights:
    """Relabel the concept's pictures at random, on salient weights only (equations 4 and 6).

    Mask: entries of the UNet whose gradient of the forgetting loss is above the median. Loss:
    |e_theta(x_t, c) - sg e_theta(x_t, c')|^2 on pictures of the concept c, c' another prompt, plus
    the usual loss on retained pictures.
    """
    prompts = task.prompts
    gone, gone_of = task.draw(prompts.targets, settings.images)
    kept, kept_of = task.draw(prompts.preserve, settings.images)
    told, stay = task.encode(prompts.targets), task.encode(prompts.preserve)
    empty = task.encode([""])
    gone_rows, kept_rows = torch.tensor(gone_of), torch.tensor(kept_of)
    schedule = task.model.denoiser.schedule

    def batch(pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        some = task.pick(settings.batch, len(pictures))
        noise = task.noise(len(some))
        t = task.pick(len(some), 1000).to(noise.device)
        return some, pictures[some].to(noise), t, noise

    def loss(student: LoadedModel, _step: int) -> Tensor:
        some, x0, t, noise = batch(gone)
        x, other = schedule.noised(x0, t, noise), task.pick(len(some), len(stay))
        with torch.no_grad():
            goal = student.denoiser(x, t, stay.select(other))
        value = mse(student.denoiser(x, t, told.select(gone_rows[some])), goal)
        some, x0, t, noise = batch(kept)
        own = denoising_loss(student, x0, t, noise, stay.select(kept_rows[some]))
        return value + settings.keep * own.mean()

    def forgetting() -> Tensor:
        some, x0, t, noise = batch(gone)
        x, cond = schedule.noised(x0, t, noise), told.select(gone_rows[some])
        free = here.denoiser(x, t, empty.select(torch.zeros_like(some)))
        output = here.denoiser(x, t, cond)
        output = free + (1 + settings.guidance) * (output - free)
        return mse(schedule.split(x, t, output)[1], noise)

    start = chosen(task.model.denoiser, lambda _name: True)
    leaves = {name: w.clone().requires_grad_() for name, w in start.items()}
    here = task.model.with_weights(leaves)
    total = {name: torch.zeros_like(w) for name, w in start.items()}
    for _ in range(max(1, settings.images // settings.batch)):
        found = torch.autograd.grad(forgetting(), list(leaves.values()), allow_unused=True)
        for name, gradient in zip(leaves, found, strict=True):
            if gradient is not None:
                total[name] += gradient
    masks = salient(total, settings.share)
    return train(task, start, loss, settings.steps, settings.rate, masks)


def salient(gradients: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Mark the entries with the largest gradients, `share` of all together (equation 4)."""
    every = torch.cat([g.abs().flatten() for g in gradients.values()])
    count = max(1, round(share * len(every)))
    threshold = every.kthvalue(len(every) - count + 1).values
    return {name: (g.abs() >= threshold).float() for name, g in gradients.items()}
