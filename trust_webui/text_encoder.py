"""The host's text encoding for the engine: its weights and clip skip, words as spelled."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trust_engine.errors import ModelError
from trust_engine.models.contract import Conditioning, stack
from trust_engine.prompts.concept import MAX_TOKENS

LONGEST = 12 * 77  # tokens: prompts of one to four chunks, in any mixture

Learned = Callable[[Sequence[str], tuple[int, int]], Any]
"""Prompts and the picture's size (h, w) -> what the host's get_learned_conditioning returns."""


class HostEncoder:
    """Encode by the host, once for each prompt, into ordinary float32 tensors on the CPU.

    What has been encoded before needs the host no more: its text encoder may leave the GPU.
    """

    def __init__(
        self, learned: Learned, count: Callable[[str], int], size: tuple[int, int],
        between: Callable[[], None] = lambda: None, host: HostEncoder | None = None,
    ) -> None:  # fmt: skip
        """Take the host's two functions, and the size (h, w) in pixels that SDXL is told.

        between: called before each prompt that is encoded; it may raise to end the work; host: the
        encoder that reads a host's syntax, if this one does not.
        """
        self._host = host
        self._learned, self._count, self.size = learned, count, size
        self._between = between
        self._rows: dict[str, Conditioning] = {}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, one row each, repeated to a length that all so far go into."""
        # One by one, as in a generation: the host's emphasis levels a whole batch by one mean.
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._rows:
                self._between()
                self._rows[prompt] = self._encoded(prompt)
        # Of all so far, for what is encoded together is used with what is encoded alone.
        lengths = {row.context.shape[1] for row in self._rows.values()}
        length = math.lcm(*lengths)
        if length > LONGEST:
            told = ", ".join(map(str, sorted(lengths)))
            raise ModelError(
                f"prompts of {told} tokens need {length} in common, "
                f"more than {LONGEST}: shorten the longest, or make them alike in length"
            )
        return stack([self._rows[prompt].repeated(length) for prompt in prompts])

    def count_tokens(self, prompt: str) -> int:
        """Count the tokens of the prompt's fullest chunk: the host splits longer prompts up."""
        return min(MAX_TOKENS, self._count(prompt))

    def with_syntax(self) -> HostEncoder:
        """Return the encoder that reads emphasis, BREAK and embeddings in prompts."""
        return self._host or self

    def token_space(self) -> None:
        """Hide the host's towers from attacks on the prompt, which know transformers' only."""

    def _encoded(self, prompt: str) -> Conditioning:
        with torch.no_grad():
            made = self._learned([prompt], self.size)
        told = made if isinstance(made, dict) else {"crossattn": made}
        with torch.inference_mode(False):  # a clone made here can be trained on
            context = _plain(told["crossattn"])
            vector = _plain(told["vector"]) if "vector" in told else None
        if not context.isfinite().all():
            raise ModelError(
                f"the host's text encoder answers {prompt!r} with numbers that are not finite; "
                "take embeddings and prompt weights out, or choose another precision for it"
            )
        return Conditioning(context, vector)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).clone()


def literal(prompt: str, emphasis: bool) -> str:
    """Write a prompt so that the host reads it word for word; emphasis: the host looks for it.

    CLIP's tokenizer reads small letters alone, so BREAK and AND lose nothing but their meaning.
    """
    if emphasis:
        prompt = re.sub(r"([\\()\[\]])", r"\\\1", prompt)
    return re.sub(r"\b(?:BREAK|AND)\b", lambda found: found[0].lower(), prompt)


@contextlib.contextmanager
def without_embeddings(tables: Sequence[Any]) -> Iterator[None]:
    """Have the host find no embedding's name among the words, for a while."""
    kept = [(table, table.ids_lookup) for table in tables]
    try:
        for table, _ in kept:
            table.ids_lookup = {}
        yield
    finally:
        for table, names in kept:
            table.ids_lookup = names
