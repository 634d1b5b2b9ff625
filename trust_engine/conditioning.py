"""What a prompt becomes before it reaches the UNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


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


def stack(parts: Sequence[Conditioning]) -> Conditioning:
    """Join conditionings along the batch."""
    context = torch.cat([part.context for part in parts])
    if any(part.vector is None for part in parts):
        return Conditioning(context)
    vectors = [part.vector for part in parts if part.vector is not None]
    return Conditioning(context, torch.cat(vectors))


class TextEncoder(Protocol):
    """A host's or checkpoint's way from words to conditioning."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, one row each."""
        ...

    def count_tokens(self, prompt: str) -> int:
        """Count the prompt's tokens, start and end not counted."""
        ...
