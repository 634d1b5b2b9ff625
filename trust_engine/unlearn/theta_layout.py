"""The weights that are fine-tuned together, as one flat vector theta."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How weights lie one after another in a vector (n,), such as a layer's q, k and v.

    shapes: of each part; heads: how many heads share its rows.
    """

    shapes: tuple[torch.Size, ...]
    heads: tuple[int, ...]

    @classmethod
    def of(cls, weights: Iterable[Tensor], heads: Iterable[int]) -> Layout:
        """Lay weights out in their order."""
        return cls(tuple(weight.shape for weight in weights), tuple(heads))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Count each part's entries."""
        return tuple(shape.numel() for shape in self.shapes)

    @property
    def size(self) -> int:
        """Count all entries, n."""
        return sum(self.sizes)

    def join(self, parts: Iterable[Tensor]) -> Tensor:
        """Copy parts into a vector (n,)."""
        return torch.cat([part.reshape(-1) for part in parts])

    def split(self, vector: Tensor) -> Sequence[Tensor]:
        """View a vector (n,) part by part, each flat."""
        return vector.split(self.sizes)

    def parts(self, vector: Tensor) -> tuple[Tensor, ...]:
        """View a vector (n,) part by part, each in its shape."""
        pairs = zip(self.split(vector), self.shapes, strict=True)
        return tuple(part.view(shape) for part, shape in pairs)

    def squared(self, vector: Tensor) -> Tensor:
        """Sum the squares of a vector: each part's first, so that no part's rounding hangs on it.

        A part alone and the same part beside others add the same number.
        """
        return torch.stack([part.square().sum() for part in self.split(vector)]).sum()
