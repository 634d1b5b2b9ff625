"""What a prompt becomes before it reaches the UNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .errors import ModelError


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: context (b, tokens, d) and, for SDXL, a vector (b, adm)."""

    context: Tensor
    vector: Tensor | None = None

    def __len__(self) -> int:
        return len(self.context)

    def select(self, index: Tensor | slice) -> Conditioning:
        """Take some of the prompts."""
        vector = None if self.vector is None else self.vector[index]
        return Conditioning(self.context[index], vector)

    def to(self, kind: torch.dtype | torch.device) -> Conditioning:
        """Convert to a dtype or move to a device."""
        vector = None if self.vector is None else self.vector.to(kind)
        return Conditioning(self.context.to(kind), vector)


def stack(parts: Sequence[Conditioning]) -> Conditioning:
    """Join conditionings along the batch."""
    context = torch.cat([part.context for part in parts])
    vectors = [part.vector for part in parts if part.vector is not None]
    if not vectors:
        return Conditioning(context)
    if len(vectors) < len(parts):
        raise ModelError("some prompts come with a pooled vector and others without")
    return Conditioning(context, torch.cat(vectors))


class TextEncoder(Protocol):
    """A host's or checkpoint's way from words to conditioning."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, one row each."""
        ...

    def count_tokens(self, prompt: str) -> int:
        """Count the prompt's tokens, start and end not counted."""
        ...
