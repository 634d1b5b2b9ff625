"""What a prompt becomes before it reaches the UNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ModelError, SpecError


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

    def repeated(self, length: int) -> Conditioning:
        """Repeat the context as a whole, up to a length that it goes into: the same to a UNet."""
        # Attention over tokens that stand there n times each is attention over each once; were
        # only some of them repeated, those would count for more.
        times, rest = divmod(length, self.context.shape[1])
        if rest:
            raise ModelError(f"{self.context.shape[1]} tokens cannot be repeated to {length}")
        return Conditioning(self.context.repeat(1, times, 1), self.vector)


def stack(parts: Sequence[Conditioning]) -> Conditioning:
    """Join conditionings along the batch; contexts of several lengths are repeated to one."""
    length = math.lcm(*(part.context.shape[1] for part in parts))
    context = torch.cat([part.repeated(length).context for part in parts])
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


def with_syntax(encoder: TextEncoder) -> TextEncoder:
    """Return a host's encoder that reads emphasis and embeddings; raises SpecError for others."""
    made = getattr(encoder, "with_syntax", None)
    if made is None:
        raise SpecError(
            "prompts in a host's syntax can be read in that host alone; set syntax to literal"
        )
    found: TextEncoder = made()
    return found
