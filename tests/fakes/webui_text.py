"""A pretended web UI's prompts: chunks of 75 tokens, each word one, and BREAK."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trust_engine.models.load import LoadedModel


def encode(model: LoadedModel, prompts: Any) -> Tensor:
    """Encode by the demo's text tower, in chunks that follow one another: (b, 77 * chunks, d)."""
    parted = [chunks(prompt) for prompt in prompts]
    most = max(map(len, parted))
    rows = [[*parts, *[""] * (most - len(parts))] for parts in parted]
    return torch.stack([model.encoder.encode(row).context.flatten(0, 1) for row in rows])


def chunks(prompt: str) -> list[str]:
    """Split a prompt at BREAK and after every 75 words."""
    parts = [part.split() for part in prompt.split("BREAK")]
    cut = ((words[i : i + 75] for i in range(0, max(1, len(words)), 75)) for words in parts)
    return [" ".join(words) for part in cut for words in part]


def count(prompt: str) -> int:
    """Count words as tokens; chunks before the last are counted as full ones."""
    *full, last = chunks(prompt)
    return 75 * len(full) + len(last.split())
