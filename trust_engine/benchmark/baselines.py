"""What one step of other unlearning methods costs, on the same model and in the same run.

Only costs are measured here: each function does the work of a step as its authors publish it and
throws the result away. ESD: arXiv 2303.07345; SalUn: arXiv 2310.12508; UCE: arXiv 2308.14761.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import seeds
from ..models.contract import Conditioning, Denoiser, device_of, projections
from ..models.load import LoadedModel
from ..models.unet_keys import projection_of

ESD_SAMPLING = 25  # denoising steps before an update, on average: 0 to 50, drawn evenly
ESD_ITERATIONS = 1000
UCE_PRESERVED = 26  # prompts


@dataclass(frozen=True)
class Batch:
    """A sample to take a step on: latents, timestep, the concept's prompt and the empty one."""

    x: Tensor
    t: Tensor
    cond: Conditioning
    uncond: Conditioning


def sample_for(model: LoadedModel) -> Batch:
    """Draw one sample of the model's latent size."""
    device = device_of(model.denoiser)
    noise = torch.randn(1, 4, *model.latent_size, generator=seeds.generator(seeds.PROBE))
    cond = model.encoder.encode(["a picture of a gun"])
    t = torch.tensor([500], device=device)
    return Batch(noise.to(device), t, cond, model.encoder.encode([""]))


def esd_update(model: LoadedModel, batch: Batch) -> None:
    """Take ESD-x's update: two frozen predictions, one with gradients in cross-attention."""
    denoiser = model.denoiser
    with torch.no_grad():
        free = denoiser(batch.x, batch.t, batch.uncond).float()
        told = denoiser(batch.x, batch.t, batch.cond).float()
    trained = [p for n, p in denoiser.module.named_parameters() if ".attn2." in n]
    with _trainable(denoiser.module, trained):
        now = denoiser(batch.x, batch.t, batch.cond).float()
        F.mse_loss(now, free - (told - free)).backward()


def salun_update(model: LoadedModel, batch: Batch) -> None:
    """Take SalUn's update on one image to forget and one to keep: gradients in all weights."""
    denoiser = model.denoiser
    with torch.no_grad():
        instead = denoiser(batch.x, batch.t, batch.uncond).float()
    with _trainable(denoiser.module, list(denoiser.module.parameters())):
        forget = denoiser(batch.x, batch.t, batch.cond).float()
        F.mse_loss(forget, instead).backward()
        keep = denoiser(batch.x, batch.t, batch.uncond).float()
        F.mse_loss(keep, batch.x).backward()


@torch.no_grad()
def uce(model: LoadedModel) -> None:
    """Solve UCE's closed form for every k and v: one concept, 26 prompts that stay."""
    edited = model.encoder.encode(["a gun"]).context[0]
    goal = model.encoder.encode(["something"]).context[0]
    kept = model.encoder.encode([f"a {word}" for word in model.vocabulary[:UCE_PRESERVED]])
    stay = kept.context.flatten(0, 1)
    for key, weight in projections(model.denoiser).items():
        if projection_of(key) != "q":
            _closed_form(weight.float(), edited, goal, stay)


def _closed_form(weight: Tensor, edited: Tensor, goal: Tensor, stay: Tensor) -> Tensor:
    """Solve its equation 7; rows of edited, goal and stay are tokens, (n, c)."""
    unit = torch.eye(weight.shape[1], device=weight.device)
    here = weight @ goal.T @ edited + weight @ stay.T @ stay + weight
    there = edited.T @ edited + stay.T @ stay + unit
    return torch.linalg.solve(there, here, left=False)


@contextlib.contextmanager
def _trainable(module: nn.Module, weights: list[nn.Parameter]) -> Iterator[None]:
    """Let gradients reach some weights, and leave neither flags nor gradients behind."""
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None


def sampling_passes(denoiser: Denoiser, batch: Batch) -> None:
    """Do one guided denoising step, two passes: ESD takes 25 of them, on average, an update."""
    with torch.no_grad():
        denoiser(batch.x, batch.t, batch.uncond)
        denoiser(batch.x, batch.t, batch.cond)
