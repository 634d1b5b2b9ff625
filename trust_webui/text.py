"""The host's text encoding for the engine: weights, BREAK, embeddings, clip skip as in the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trust_engine.conditioning import Conditioning, stack

ROWS = 16  # prompts that the host gets at once
Learned = Callable[[Sequence[str], tuple[int, int]], Any]
"""Prompts and the picture's size (h, w) -> what the host's get_learned_conditioning returns."""


class HostEncoder:
    """Encode by the host, once for each prompt, into ordinary float32 tensors on the CPU.

    What has been encoded before needs the host no more: its text encoder may leave the GPU.
    """

    def __init__(
        self, learned: Learned, count: Callable[[str], int], size: tuple[int, int]
    ) -> None:
        """Take the host's two functions, and the size (h, w) in pixels that SDXL is told."""
        self._learned, self._count, self.size = learned, count, size
        self._rows: dict[str, Conditioning] = {}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, one row each; shorter rows are repeated to the longest so far."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._rows]
        for start in range(0, len(new), ROWS):
            self._remember(new[start : start + ROWS])
        longest = max(row.context.shape[1] for row in self._rows.values())
        rows = [self._rows[prompt] for prompt in prompts]
        return stack([Conditioning(_stretched(r.context, longest), r.vector) for r in rows])

    def count_tokens(self, prompt: str) -> int:
        """Count the prompt's tokens, start and end not counted."""
        return self._count(prompt)

    def token_space(self) -> None:
        """Hide the host's towers from attacks on the prompt, which know transformers' only."""

    def _remember(self, prompts: Sequence[str]) -> None:
        with torch.no_grad():
            made = self._learned(prompts, self.size)
        told = made if isinstance(made, dict) else {"crossattn": made}
        with torch.inference_mode(False):  # a clone made here can be trained on
            context = _plain(told["crossattn"])
            vector = _plain(told["vector"]) if "vector" in told else None
        for i, prompt in enumerate(prompts):
            row = slice(i, i + 1)
            self._rows[prompt] = Conditioning(context[row], None if vector is None else vector[row])


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).clone()


def _stretched(context: Tensor, length: int) -> Tensor:
    times = -(-length // context.shape[1])
    return context.repeat(1, times, 1)[:, :length]
