"""The local engine: every cross-attention layer forgets by itself, on recorded states.

No gradient passes through the UNet. A layer's effect on an image position depends on that
position, K and V alone, so a random subset of positions per prompt and step is enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import CrossAttention
from .errors import DivergenceError
from .mask import DynamicMask, Tensors, overlap, share
from .objective import cip, csr, distance
from .optimiser import SelectiveAdam
from .spec import UnlearnSpec

SETTLE = 0.7  # the mask is re-estimated until this share of the steps, then re-fitted as it is
POSITIONS_A_STEP = 48  # drawn anew for each prompt and step


@dataclass(frozen=True)
class Situation:
    """States x (p, n, d) seen under contexts `now` (p, 77, c), to be answered as under `goal`."""

    x: Tensor
    now: Tensor
    goal: Tensor

    def to(self, device: torch.device) -> Situation:
        """Move to a device."""
        return Situation(self.x.to(device), self.now.to(device), self.goal.to(device))

    def draw(self, generator: torch.Generator, count: int) -> Situation:
        """Take a random subset of positions, the same for all prompts."""
        chosen = torch.randperm(self.x.shape[1], generator=generator)[:count]
        return Situation(self.x[:, chosen.to(self.x.device)], self.now, self.goal)


@dataclass(frozen=True)
class LayerStep:
    """Where one layer stands: effect E (1 at the start), harm to others, masked share, overlap."""

    effect: float
    harm: float
    share: float
    overlap: float


class LayerRun:
    """Unlearn in one layer: iterate over its steps, then read `offset` and `masks`."""

    def __init__(
        self, layer: CrossAttention, erase: Situation, keep: Situation, spec: UnlearnSpec
    ) -> None:
        self.layer, self.erase, self.keep, self.spec = layer, erase, keep, spec
        base = (layer.q, layer.k, layer.v)
        self.optimiser = SelectiveAdam([b.to(erase.x.device) for b in base], spec.rate)
        count = math.ceil(spec.budget * sum(b.numel() for b in base))
        self.mask = DynamicMask(spec.xi, count)
        self._generator = torch.Generator().manual_seed(spec.seed)
        self.scale = distance(*self._answers(erase, layer), 1.0).clamp(min=1e-12)

    @property
    def offset(self) -> Tensors:
        """Return theta - theta_0 of q, k and v."""
        return self.optimiser.offset

    def _answers(self, situation: Situation, layer: CrossAttention) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            goal = self.layer(situation.x, situation.goal)
        return layer(situation.x, situation.now), goal

    def _measure(self, situation: Situation, theta: Tensors) -> Tensor:
        return distance(*self._answers(situation, self.layer.with_weights(*theta)), self.scale)

    def __iter__(self) -> Iterator[LayerStep]:
        for step in range(self.spec.steps):
            yield self._step(step)

    def _step(self, step: int) -> LayerStep:
        spec = self.spec
        erase = self.erase.draw(self._generator, POSITIONS_A_STEP)
        keep = self.keep.draw(self._generator, POSITIONS_A_STEP)
        theta = self.optimiser.theta()
        effect = self._measure(erase, theta)
        second_order = spec.objective != "none"
        gradient = torch.autograd.grad(effect, theta, create_graph=second_order)
        if self.mask.current is None or step < SETTLE * spec.steps:
            mask = self.mask.update(tuple(g.detach() for g in gradient))
        else:
            mask = self.mask.current
        harm = self._measure(keep, theta)
        total = spec.beta * harm
        if spec.objective == "csr":
            total = total + spec.lam * csr(gradient, mask)
        elif spec.objective == "cip":
            total = total + spec.lam * cip(gradient, spec.gamma, spec.tau)
        rest = torch.autograd.grad(total, theta)
        joint = [g.detach() + r for g, r in zip(gradient, rest, strict=True)]
        effect, harm, total = effect.detach(), harm.detach(), total.detach()
        if not all(bool(t.isfinite().all()) for t in (effect, total, *joint)):
            raise DivergenceError(f"step {step}: the loss is not finite; lower the rate")
        self.optimiser.step(joint, mask, cosine(step / spec.steps))
        drift = overlap(self.mask.first or mask, mask)
        return LayerStep(float(effect), float(harm), share(mask), drift)


def cosine(progress: float) -> float:
    """Fall from 1 to 0.02 along a cosine; progress is a fraction 0..1."""
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
