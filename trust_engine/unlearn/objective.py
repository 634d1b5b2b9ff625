"""What is added to the concept effect: CSR, CIP, and their gradients. Pure functions.

Symbols as in docs/concepts/method.md: E concept effect, theta the q/k/v entries, g = dE/dtheta,
m the mask; theta, g and m are vectors (n,), which a layout parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .theta_layout import Layout

RADIUS = 1e-2  # of a finite difference, as a share of theta's root mean square


def distance(output: Tensor, goal: Tensor, scale: Tensor | float) -> Tensor:
    """Mean squared distance in units of `scale`; outputs (b, n, d)."""
    return (output - goal).square().mean() / scale


def pushed(anchor: Tensor, concept: Tensor, eta: Tensor | float) -> Tensor:
    """Return the goal G = a - eta (c - a): as far beyond the anchor's answer a, seen from c's.

    a, c: what theta_0 answers to the anchor and to the concept; eta > 0 is ESD's negative guidance.
    """
    return anchor - eta * (concept - anchor)


def csr(g: Tensor, m: Tensor, layout: Layout) -> Tensor:
    """Concept Sensitivity Reduction: || m * g || (reconstruction of the paper's CSR)."""
    return (layout.squared(g * m) + 1e-20).sqrt()


@dataclass(frozen=True)
class InfluenceScale:
    """Each part's mean and deviation of |g| at theta_0, (parts,): what CIP's z-scores refer to.

    A moving reference would make the count scale-free: no shrinking influence could lower it.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, g: Tensor, layout: Layout) -> InfluenceScale:
        """Take the scale of a gradient."""
        sizes = layout.split(g.detach().abs())
        deviation = torch.stack([s.std().clamp(min=1e-20) for s in sizes])
        return cls(torch.stack([s.mean() for s in sizes]), deviation)


def cip(g: Tensor, scale: InfluenceScale, layout: Layout, gamma: float, tau: float) -> Tensor:
    """Concept Influence Penalty: the soft share of entries whose influence tops gamma.

    mean sigmoid((z - gamma) / tau) with z = (|g| - mean) / deviation at theta_0: a soft surrogate
    of the paper's cardinality.
    """
    counts = [
        torch.sigmoid(((part.abs() - mean) / deviation - gamma) / tau).sum()
        for part, mean, deviation in zip(layout.split(g), scale.mean, scale.deviation, strict=True)
    ]
    return torch.stack(counts).sum() / len(g)


def slope(penalty: Callable[[Tensor], Tensor], g: Tensor) -> Tensor:
    """Differentiate a penalty of g by g: the direction w of the Hessian product it needs.

    For every penalty R(g), dR/dtheta = H w with w = dR/dg and H the Hessian of E. For CSR,
    w = m * g / || m * g ||.
    """
    leaf = g.detach().requires_grad_(True)
    return torch.autograd.grad(penalty(leaf), leaf)[0]


def exact_product(g: Tensor, theta: Tensor, w: Tensor) -> Tensor:
    """Multiply the Hessian by w by differentiating g, which must carry its graph."""
    (product,) = torch.autograd.grad(g, theta, grad_outputs=w, allow_unused=True)
    return torch.zeros_like(theta) if product is None else product


def finite_product(
    gradient_at: Callable[[Tensor], Tensor], theta: Tensor, w: Tensor, layout: Layout
) -> Tensor:
    """Multiply the Hessian by w by a central difference: two plain gradients, no second graph.

    H w = || w || (g(theta + r u) - g(theta - r u)) / 2r + O(r^2), u = w / || w ||.
    """
    norm = layout.squared(w).sqrt().clamp(min=1e-20)
    moved = max(int(w.count_nonzero()), 1)
    radius = RADIUS * (layout.squared(theta.detach()) / len(theta) * moved).sqrt()
    above, below = (
        gradient_at((theta.detach() + sign * radius / norm * w).requires_grad_(True))
        for sign in (1.0, -1.0)
    )
    return (above - below) * (norm / (2 * radius))
