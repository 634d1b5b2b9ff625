"""CSR and CIP on one layer: the concept effect, and what is added to it. Pure functions.

Symbols as in docs/method.md: E concept effect, theta the q/k/v entries, m the mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .mask import Tensors, z_scores


def distance(output: Tensor, goal: Tensor, scale: Tensor | float) -> Tensor:
    """Mean squared distance in units of `scale`; outputs (b, n, d)."""
    return (output - goal).square().mean() / scale


def csr(gradient: Sequence[Tensor], mask: Sequence[Tensor]) -> Tensor:
    """Concept Sensitivity Reduction: || m * dE/dtheta || (reconstruction of the paper's CSR).

    `gradient` must carry its graph: the derivative of this norm is a Hessian-vector product.
    """
    squares = [(g * m).square().sum() for g, m in zip(gradient, mask, strict=True)]
    return (torch.stack(squares).sum() + 1e-20).sqrt()


def cip(gradient: Tensors, gamma: float, tau: float) -> Tensor:
    """Concept Influence Penalty: the soft share of entries whose z-scored influence tops gamma."""
    scores = z_scores(tuple(g.abs() for g in gradient))
    influential = [torch.sigmoid((z - gamma) / tau).sum() for z in scores]
    return torch.stack(influential).sum() / sum(z.numel() for z in scores)
