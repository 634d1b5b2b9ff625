"""What is added to the concept effect: CSR, CIP, and their gradients. Pure functions.

Symbols as in docs/concepts/method.md: E concept effect, theta the q/k/v entries, g = dE/dtheta,
m the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .mask import Tensors

RADIUS = 1e-2  # of a finite difference, as a share of theta's root mean square


def distance(output: Tensor, goal: Tensor, scale: Tensor | float) -> Tensor:
    """Mean squared distance in units of `scale`; outputs (b, n, d)."""
    return (output - goal).square().mean() / scale


def csr(gradient: Sequence[Tensor], mask: Sequence[Tensor]) -> Tensor:
    """Concept Sensitivity Reduction: || m * g || (reconstruction of the paper's CSR)."""
    squares = [(g * m).square().sum() for g, m in zip(gradient, mask, strict=True)]
    return (torch.stack(squares).sum() + 1e-20).sqrt()


@dataclass(frozen=True)
class InfluenceScale:
    """Each projection's mean and deviation of |g| at theta_0, which CIP's z-scores refer to.

    A moving reference would make the count scale-free: no shrinking influence could lower it.
    """

    mean: Tensors
    deviation: Tensors

    @classmethod
    def of(cls, gradient: Sequence[Tensor]) -> InfluenceScale:
        """Take the scale of a gradient."""
        sizes = [g.detach().abs() for g in gradient]
        deviation = tuple(s.std().clamp(min=1e-20) for s in sizes)
        return cls(tuple(s.mean() for s in sizes), deviation)


def cip(gradient: Sequence[Tensor], scale: InfluenceScale, gamma: float, tau: float) -> Tensor:
    """Concept Influence Penalty: the soft share of entries whose influence tops gamma.

    mean sigmoid((z - gamma) / tau) with z = (|g| - mean) / deviation at theta_0: a soft surrogate
    of the paper's cardinality.
    """
    counts = [
        torch.sigmoid(((g.abs() - mean) / deviation - gamma) / tau).sum()
        for g, mean, deviation in zip(gradient, scale.mean, scale.deviation, strict=True)
    ]
    return torch.stack(counts).sum() / sum(g.numel() for g in gradient)


def slope(penalty: Callable[[Tensors], Tensor], gradient: Sequence[Tensor]) -> Tensors:
    """Differentiate a penalty of g by g: the direction w of the Hessian product it needs.

    For every penalty R(g), dR/dtheta = H w with w = dR/dg and H the Hessian of E. For CSR,
    w = m * g / || m * g ||.
    """
    leaves = tuple(g.detach().requires_grad_(True) for g in gradient)
    return torch.autograd.grad(penalty(leaves), leaves)


def exact_product(gradient: Sequence[Tensor], theta: Tensors, w: Tensors) -> Tensors:
    """Multiply the Hessian by w by differentiating g, which must carry its graph."""
    zeros = tuple(torch.zeros_like(t) for t in theta)
    products = torch.autograd.grad(gradient, theta, grad_outputs=w, allow_unused=True)
    return tuple(z if p is None else p for p, z in zip(products, zeros, strict=True))


def finite_product(
    gradient_at: Callable[[Tensors], Tensors], theta: Tensors, w: Tensors
) -> Tensors:
    """Multiply the Hessian by w by a central difference: two plain gradients, no second graph.

    H w = || w || (g(theta + r u) - g(theta - r u)) / 2r + O(r^2), u = w / || w ||.
    """
    norm = torch.stack([v.square().sum() for v in w]).sum().sqrt().clamp(min=1e-20)
    moved = sum(int(v.count_nonzero()) for v in w)
    size = torch.stack([t.detach().square().sum() for t in theta]).sum()
    radius = RADIUS * (size / sum(t.numel() for t in theta) * max(moved, 1)).sqrt()
    ends = [
        gradient_at(
            tuple(
                (t.detach() + sign * radius / norm * v).requires_grad_(True)
                for t, v in zip(theta, w, strict=True)
            )
        )
        for sign in (1.0, -1.0)
    ]
    return tuple((a - b) * (norm / (2 * radius)) for a, b in zip(*ends, strict=True))
