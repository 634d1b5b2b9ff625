"""Adam that moves masked entries only and takes back those that leave the mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8


class SelectiveAdam:
    """Adam over the offsets theta - theta_0 of some tensors, restricted to a mask.

    rate: size of a step as a share of each tensor's root mean square, so that one rate suits
    models whose weights differ in size.
    """

    def __init__(self, base: Sequence[Tensor], rate: float) -> None:
        self.base = tuple(base)
        self.offset = tuple(torch.zeros_like(b) for b in base)
        self.rates = tuple(rate * float(b.square().mean().sqrt()) for b in base)
        self._first = tuple(torch.zeros_like(b) for b in base)
        self._second = tuple(torch.zeros_like(b) for b in base)
        self._age = tuple(torch.zeros_like(b) for b in base)

    def theta(self) -> tuple[Tensor, ...]:
        """Return the current weights, ready to be differentiated."""
        pairs = zip(self.base, self.offset, strict=True)
        return tuple((b + o).requires_grad_(True) for b, o in pairs)

    @torch.no_grad()
    def step(self, gradient: Sequence[Tensor], mask: Sequence[Tensor], scale: float = 1.0) -> None:
        """Move masked entries by one Adam step of `rate * scale`; revert the others."""
        for i, (g, m) in enumerate(zip(gradient, mask, strict=True)):
            keep, g = m.to(g.dtype), g.masked_fill(~m, 0)  # 0 * inf would be nan
            self._age[i].add_(1).mul_(keep)
            self._first[i].lerp_(g, 1 - BETA1).mul_(keep)
            self._second[i].lerp_(g.square(), 1 - BETA2).mul_(keep)
            age = self._age[i].clamp(min=1)
            mean = self._first[i] / (1 - BETA1**age)
            spread = (self._second[i] / (1 - BETA2**age)).sqrt() + EPSILON
            self.offset[i].sub_(self.rates[i] * scale * mean / spread).mul_(keep)

    @torch.no_grad()
    def revert(self, mask: Sequence[Tensor]) -> None:
        """Take back what lies outside a mask."""
        for offset, m in zip(self.offset, mask, strict=True):
            offset.masked_fill_(~m, 0)

    def influence(self) -> tuple[Tensor, ...]:
        """Estimate what taking each entry's change back would cost: |offset| sqrt(mean g^2)."""
        pairs = zip(self.offset, self._second, strict=True)
        return tuple(o.abs() * v.sqrt() for o, v in pairs)

    def state(self) -> dict[str, Tensor]:
        """Return what resuming needs."""
        kept = {"offset": self.offset, "m": self._first, "v": self._second, "age": self._age}
        return {f"{name}.{i}": t for name, parts in kept.items() for i, t in enumerate(parts)}

    def load(self, kept: dict[str, Tensor]) -> None:
        """Go on from a state."""
        for name, tensor in self.state().items():
            tensor.copy_(kept[name])
