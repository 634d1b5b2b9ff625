"""A text encoder below its words: the embedding table, and encoding rows that are no words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..models.contract import Conditioning


class TokenSpace(Protocol):
    """What attacks on the prompt need of a text encoder."""

    @property
    def table(self) -> Tensor:
        """Return the embedding table (vocabulary, d)."""
        ...

    def tokens(self, text: str) -> list[int]:
        """Turn text into token ids, start and end not among them."""
        ...

    def frame(self, tokens: Sequence[int]) -> Tensor:
        """Put start, end and padding around token ids: (length,)."""
        ...

    def text(self, tokens: Sequence[int]) -> str:
        """Turn token ids into text."""
        ...

    def encode(self, rows: Tensor) -> Conditioning:
        """Encode embedded prompts (b, length, d), differentiably."""
        ...


class ClipTokens:
    """The token space of a transformers CLIP text tower."""

    def __init__(self, encoder: Any) -> None:
        self.tower, self.tokenizer, self.device = encoder.tower, encoder.tokenizer, encoder.device
        self.layer = self.tower.get_input_embeddings()
        self.start, self.end = self.tokenizer("").input_ids[:2]
        self.length = self.tower.config.max_position_embeddings

    @property
    def table(self) -> Tensor:
        """Return the embedding table (vocabulary, d)."""
        return self.layer.weight.detach()

    def tokens(self, text: str) -> list[int]:
        """Turn text into token ids, start and end not among them."""
        return list(self.tokenizer(text).input_ids[1:-1])

    def frame(self, tokens: Sequence[int]) -> Tensor:
        """Put start, end and padding around token ids: (77,)."""
        ids = [self.start, *list(tokens)[: self.length - 2]]
        return torch.tensor(ids + [self.end] * (self.length - len(ids)), device=self.device)

    def text(self, tokens: Sequence[int]) -> str:
        """Turn token ids into text."""
        return str(self.tokenizer.decode(list(tokens))).strip()

    def encode(self, rows: Tensor) -> Conditioning:
        """Encode embedded prompts (b, 77, d), differentiably."""
        # The hook hands the tower our rows instead of its table's; the ids only say how many.
        handle = self.layer.register_forward_hook(lambda *_: rows)
        try:
            ids = torch.full(rows.shape[:2], self.end, device=rows.device)
            return Conditioning(self.tower(ids).last_hidden_state.float())
        finally:
            handle.remove()


def token_space(encoder: Any) -> TokenSpace | None:
    """Return the encoder's token space, or None for an encoder that hides it."""
    own = getattr(encoder, "token_space", None)
    if own is not None:
        return own()
    return ClipTokens(encoder) if hasattr(encoder, "tower") else None


def embed(space: TokenSpace, ids: Tensor) -> Tensor:
    """Look token ids (b, length) up: rows (b, length, d)."""
    return space.table.float()[ids.to(space.table.device)]


def fill(space: TokenSpace, before: str, slots: int, after: str) -> tuple[Tensor, slice]:
    """Frame a prompt with `slots` free places in it: ids (length,) and where the places are."""
    head, blank = space.tokens(before), space.tokens("a")[:1]
    ids = space.frame([*head, *(blank * slots), *space.tokens(after)])
    return ids, slice(1 + len(head), 1 + len(head) + slots)
