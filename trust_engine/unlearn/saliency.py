"""Where concept neurons may be read from: three sources of saliency behind one interface.

attention: the local effect E_l of each layer, on its recorded states;
noise: the concept effect E in the noise prediction of the whole UNet;
clip: how well the picture so far shows the prompt, through the VAE (the paper's way).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..models.contract import Score
from .end_to_end import EndToEndProblem
from .layerwise import LayerProblem

BATCHES = 8  # averaged for a saliency that is taken once


class Source(Protocol):
    """A saliency of all weights at theta."""

    def __call__(self, theta: Tensor, step: int) -> Tensor:
        """Return |dS/dtheta| (n,)."""
        ...


class AttentionSaliency:
    """|dE_l/dtheta| of each layer by itself, in the layers' order."""

    def __init__(self, layers: Sequence[LayerProblem]) -> None:
        self.layers = layers

    def __call__(self, theta: Tensor, step: int) -> Tensor:
        """Return |dE_l/dtheta| (n,)."""
        parts = theta.split([layer.layout.size for layer in self.layers])
        pairs = zip(self.layers, parts, strict=True)
        return torch.cat([_size(layer.effect(own, step), own) for layer, own in pairs])


class NoiseSaliency:
    """|dE/dtheta| of the whole UNet's concept effect."""

    def __init__(self, problem: EndToEndProblem) -> None:
        self.problem = problem

    def __call__(self, theta: Tensor, step: int) -> Tensor:
        """Return |dE/dtheta| (n,)."""
        return _size(self.problem.effect(theta, step), theta)


class ClipSaliency:
    """|dS/dtheta| of a CLIP score S of the clean picture that the UNet predicts."""

    def __init__(self, problem: EndToEndProblem, score: Score, targets: Sequence[str]) -> None:
        self.problem, self.score, self.targets = problem, score, targets

    def __call__(self, theta: Tensor, step: int) -> Tensor:
        """Return |dS/dtheta| (n,)."""
        problem = self.problem
        some, x, t = problem.draw(problem.erase, problem.sample(step))
        now = problem.erase.now.select(some.to(problem.erase.now.context.device))
        output = problem.predict(theta, x, t, now)
        x0, _ = problem.denoiser.schedule.split(x, t, output)
        prompts = [self.targets[int(i) % len(self.targets)] for i in some]
        return _size(self.score(x0, prompts).mean(), theta)


def averaged(source: Source, theta: Tensor, batches: int = BATCHES) -> Tensor:
    """Average a source's saliency at theta over some batches."""
    total = source(theta, 0)
    for step in range(1, batches):
        total = total + source(theta, step)
    return total / batches


def _size(value: Tensor, theta: Tensor) -> Tensor:
    """Return |dvalue/dtheta|."""
    return torch.autograd.grad(value, theta)[0].detach().abs()
