"""The host's CLIP as the engine's text encoder: its weights and clip skip, words as spelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..trust_engine.errors import ModelError
from ..trust_engine.models.contract import Conditioning, stack
from .syntax import literal
from .token_space import tokens_of


class HostEncoder:
    """Encode prompts with a CLIP, as its node does, into what a MODEL's UNet takes."""

    def __init__(
        self,
        clip: Any,
        model: Any,
        size: tuple[int, int],
        device: torch.device,
        syntax: bool = False,
    ) -> None:
        """Take the size (h, w) in pixels, which SDXL is told, and where the UNet computes.

        syntax: read emphasis and embeddings in prompts, as the host's own node does.
        """
        if clip is None:
            raise ModelError("there is no CLIP: the checkpoint has no text encoder; connect one")
        self.clip, self.model, self.size, self.device = clip, model, size, device
        self.syntax = syntax
        self._tokens: Any = None
        self._special = {token for token, _ in _entries(clip.tokenize(""))}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, one row each; rows that differ in length are repeated to one length."""
        made = self._encode(prompts)
        # Out of inference mode a clone is an ordinary tensor, which attacks can learn on.
        vector = None if made.vector is None else made.vector.clone()
        return Conditioning(made.context.clone(), vector)

    @torch.inference_mode()  # the host loads and moves its weights in this mode only
    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        return stack([self._row(prompt) for prompt in prompts]).to(self.device)

    def count_tokens(self, prompt: str) -> int:
        """Count the prompt's tokens, start, end and padding not counted."""
        return sum(token not in self._special for token, _ in _entries(self._tokenize(prompt)))

    def with_syntax(self) -> HostEncoder:
        """Return the encoder that reads emphasis and embeddings in prompts."""
        return HostEncoder(self.clip, self.model, self.size, self.device, syntax=True)

    def _tokenize(self, prompt: str) -> Any:
        return self.clip.tokenize(prompt if self.syntax else literal(prompt))

    def token_space(self) -> Any:
        """Return what attacks that learn tokens need; None if the CLIP is of another kind."""
        if self._tokens is None:
            self._tokens = tokens_of(self.clip, self.device, self._composed)
        return self._tokens

    def places_of(self, prompt: str, word: str) -> list[int]:
        """Find the tokens of a word in a prompt: their places in the context."""
        wanted = [t for t, _ in _entries(self._tokenize(word)) if t not in self._special]
        tokens = [token for token, _ in _entries(self._tokenize(prompt))]
        spans = range(len(tokens) - len(wanted) + 1)
        found = [i for i in spans if wanted and tokens[i : i + len(wanted)] == wanted]
        return [i + k for i in found for k in range(len(wanted))]

    def _row(self, prompt: str) -> Conditioning:
        context, pooled = self.clip.encode_from_tokens(self._tokenize(prompt), return_pooled=True)
        return Conditioning(context.float(), self._vector(pooled))

    def _vector(self, pooled: Tensor | None) -> Tensor | None:
        """Let the MODEL compose what SDXL is told beside the text: (1, adm)."""
        height, width = self.size
        told = {"pooled_output": pooled, "height": height, "width": width, "device": "cpu"}
        return self.model.model.encode_adm(**told, prompt_type="positive")

    def _composed(self, pooled: Tensor) -> Tensor | None:
        told = self._vector(pooled)
        return None if told is None else told.float().to(self.device)


def _entries(tokens: Any) -> Iterator[tuple[Any, float]]:
    """List (token, weight) of a tokenised prompt, of the first text encoder if there are two."""
    for chunk in next(iter(tokens.values())) if isinstance(tokens, dict) else tokens:
        for entry in chunk:
            token = entry[0]
            yield _identity(token), float(entry[1])


def _identity(token: Any) -> Any:
    """Tell tokens apart by value; an embedding's vectors stand where a number would."""
    if isinstance(token, dict):  # recent hosts wrap what is no number
        token = token.get("data")
    if isinstance(token, Tensor):
        return token.detach().float().cpu().numpy().tobytes()
    return token
