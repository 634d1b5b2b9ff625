"""Adam that moves masked entries only and takes back those that leave the mask."""

from __future__ import annotations

import torch
from torch import Tensor

from .theta_layout import Layout

BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8


class SelectiveAdam:
    """Adam over the offset theta - theta_0 of a vector of weights (n,), restricted to a mask.

    rate: size of a step as a share of each part's root mean square, so that one rate suits
    models whose weights differ in size.
    """

    def __init__(self, base: Tensor, layout: Layout, rate: float) -> None:
        self.base, self.layout = base, layout
        self.offset = torch.zeros_like(base)
        self.rates = [rate * float(part.square().mean().sqrt()) for part in layout.split(base)]
        self._first, self._second, self._age = (torch.zeros_like(base) for _ in range(3))

    def theta(self) -> Tensor:
        """Return the current weights, ready to be differentiated."""
        return (self.base + self.offset).requires_grad_(True)

    @torch.no_grad()
    def step(self, gradient: Tensor, mask: Tensor, scale: float = 1.0) -> None:
        """Move masked entries by one Adam step of `rate * scale`; revert the others."""
        moments = (self.offset, self._first, self._second, self._age)
        # Part by part: the intermediate results of a large unit's would fill the memory at once.
        parts = zip(self.rates, *map(self.layout.split, (gradient, mask, *moments)), strict=True)
        for rate, g, m, offset, first, second, age in parts:
            keep, g = m.to(g.dtype), g.masked_fill(~m, 0)  # 0 * inf would be nan
            age.add_(1).mul_(keep)
            first.lerp_(g, 1 - BETA1).mul_(keep)
            second.lerp_(g.square(), 1 - BETA2).mul_(keep)
            steps = age.clamp(min=1)
            mean = first / (1 - BETA1**steps)
            spread = (second / (1 - BETA2**steps)).sqrt() + EPSILON
            offset.sub_(rate * scale * mean / spread).mul_(keep)

    @torch.no_grad()
    def revert(self, mask: Tensor) -> None:
        """Take back what lies outside a mask."""
        self.offset.masked_fill_(~mask, 0)

    def influence(self) -> Tensor:
        """Estimate what taking each entry's change back would cost: |offset| sqrt(mean g^2)."""
        return self.offset.abs() * self._second.sqrt()

    def state(self) -> dict[str, Tensor]:
        """Return what resuming needs, part by part."""
        kept = {"offset": self.offset, "m": self._first, "v": self._second, "age": self._age}
        return {f"{n}.{i}": p for n, v in kept.items() for i, p in enumerate(self.layout.parts(v))}

    def load(self, kept: dict[str, Tensor]) -> None:
        """Go on from a state."""
        for name, part in self.state().items():
            part.copy_(kept[name])
