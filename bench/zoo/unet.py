"""Train a denoiser of the zoo on Emoji World's latents: one loop for every prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.world.pace import Pace
from bench.world.train_unet import latents, schedule, weight_of
from bench.world.training import autocast, channels_last, pick_device
from bench.zoo.captions import write
from bench.zoo.training import RUNS, Run
from trust_engine.demo.vocabulary import Scene

Texts = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""Encode captions to what a denoiser's forward takes beside latents and timesteps."""
Writer = Callable[[np.random.Generator, Scene], str]
BATCH = 48
KEEP = 250  # steps between two writings of the averaged weights
DROP = 0.1  # share of captions replaced by "", so that guidance works


@dataclass(frozen=True)
class Recipe:
    """How a denoiser is trained: the rate of Muon and AdamW, and what is shown how often.

    lean: timesteps are 1000 u^lean, below 1 more of the noisy ones; pairs: share of scenes with
    two objects; hard: object -> how much more often; decay: of the averaged weights; noisy: extra
    weight of the error where there is least signal.
    """

    rate: float = 1e-3
    lean: float = 0.75
    pairs: float = 0.4
    hard: Mapping[str, float] = field(default_factory=dict)
    decay: float = 0.999
    noisy: float = 0.0


Loss = Callable[[Callable[..., Any], np.random.Generator], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Job:
    """A denoiser to train: its name, module, texts, prediction and steps.

    prediction: "eps", "v" or "flow"; start: averaged weights and step to go on from, if its run is
    gone; extra: further input channels for a batch of latents (inpainting), or None; data: latents
    (n, 4, 16, 16) and what each shows, instead of the demo's; loss: one of its own, instead.
    Weights that require no gradient stay.
    """

    name: str
    module: nn.Module
    texts: Texts
    steps: int
    prediction: str = "eps"
    recipe: Recipe = Recipe()
    writer: Writer = lambda rng, scene: write(rng, scene).text
    start: tuple[dict[str, Tensor], int] | None = None
    extra: Callable[[Tensor], Tensor] | None = None
    data: Callable[[], tuple[Tensor, list[Scene]]] | None = None
    loss: Loss | None = None


def shares(scenes: Sequence[Scene], recipe: Recipe) -> Tensor:
    """Tell how often each scene is drawn, (n,), up to a factor."""
    count = torch.tensor([len(scene.objects) for scene in scenes])
    pairs, single = recipe.pairs / (count == 2).sum(), (1 - recipe.pairs) / (count == 1).sum()
    more = [max(recipe.hard.get(name, 1.0) for name in scene.objects) for scene in scenes]
    return torch.where(count == 2, pairs, single) * torch.tensor(more)


def noised(
    x: Tensor, noise: Tensor, prediction: str, lean: float, noisy: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw times and noise latents (b, 4, h, w): input, times (b,), goal, weight (b,)."""
    u = torch.rand(len(x), device=x.device)
    if prediction == "flow":  # SD 3: shift 3 leans to the noisy end (Esser et al. 2024, eq. 23)
        sigma = 3 * u / (1 + 2 * u)
        at = sigma.view(-1, 1, 1, 1)
        return (1 - at) * x + at * noise, 1000 * sigma, noise - x, torch.ones_like(u)
    t = (1000 * u**lean).long().clamp(max=999)
    alphas = schedule().alphas_cumprod.to(x.device)[t]
    a = alphas.view(-1, 1, 1, 1)
    mixed = a.sqrt() * x + (1 - a).sqrt() * noise
    snr = alphas / (1 - alphas)
    weight = weight_of(snr) * (1 + noisy * (1 - alphas))
    if prediction == "eps":
        return mixed, t, noise, weight
    # v's squared error is (1 + snr) / snr times x0's over snr: as eps's weight, over 1 + snr.
    return mixed, t, a.sqrt() * noise - (1 - a).sqrt() * x, weight * snr / (1 + snr)


def denoising(job: Job) -> Loss:
    """Return the usual loss: the squared error of what the module predicts, weighted."""
    device, recipe = pick_device(), job.recipe
    z, scenes = job.data() if job.data else latents(device)
    share = shares(scenes, recipe)

    def loss(
        module: Callable[..., Any], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.multinomial(share, BATCH, replacement=True)
        texts = ["" if rng.random() < DROP else job.writer(rng, scenes[i]) for i in chosen.tolist()]
        x = z[chosen].to(device)
        noise = torch.randn_like(x)
        mixed, t, goal, weight = noised(x, noise, job.prediction, recipe.lean, recipe.noisy)
        if job.extra is not None:
            mixed = torch.cat([mixed, job.extra(x)], 1)
        with autocast(device):
            out = module(mixed, t, **job.texts(texts)).sample
        each = F.mse_loss(out.float(), goal, reduction="none").mean((1, 2, 3))
        return (each * weight).mean(), {"mse": round(float(each.detach().mean()), 4)}

    return loss


def train(job: Job, stop: int | None = None) -> None:
    """Train, or resume, up to step `stop`; keeps averaged weights at runs/zoo/NAME.pt."""
    device = pick_device()
    torch.manual_seed(4)
    module = channels_last(job.module, device)
    recipe = job.recipe
    pace = Pace(job.steps, recipe.rate, recipe.decay, muon=True)
    run = Run(job.name, {"net": module}, pace, job.start)
    torch.manual_seed(run.step + 4)
    rng = np.random.default_rng((4, run.step))
    last = min(job.steps, stop or job.steps)
    if run.step >= last:
        return
    keep(run, job)
    loss, forward = job.loss or denoising(job), torch.compile(module)
    for step in run.run(lambda _: loss(forward, rng)):
        if step % KEEP == 0 or step >= last:
            keep(run, job)
        if step >= last:
            break
    run.save()


def keep(run: Run, job: Job) -> None:
    """Write the averaged weights with their step; what trains from the demo is one at step 0."""
    torch.save({"weights": run.averaged("net"), "step": run.step}, RUNS / f"{job.name}.pt")
