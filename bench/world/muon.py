"""Muon: momentum, orthogonalised by Newton-Schulz (Jordan et al., 2024), for linear and conv."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bench.world.number_type import quick_type

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ROUNDS = 4  # a fifth sharpens only the smallest singular values, for a quarter more work


class Muon(torch.optim.Optimizer):
    """Step by the orthogonalised momentum of each weight, seen as a matrix (out, in * kh * kw).

    torch.optim.Muon takes 2-D weights only. Steps are scaled to AdamW's usual root mean square
    (arXiv 2502.16982), so that one learning rate suits both.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(momentum, group["momentum"])
                matrix = orthogonalise(ahead.flatten(1))
                scale = 0.2 * max(matrix.shape) ** 0.5
                weight.add_(matrix.view(weight.shape), alpha=-group["lr"] * scale)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return about U V^T of a matrix's singular value decomposition."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix).to(quick_type(matrix.device))
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrix.dtype)
