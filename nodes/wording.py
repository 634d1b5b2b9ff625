"""The engine's errors in the words of the nodes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..trust_engine.errors import TrustError

INPUTS = {"companion": "partner", "condition": "partner", "template": "templates",
          "also": "and_also", "concept": "words", "concepts": "words"}  # fmt: skip
_STANDING_FOR = ("TEXT", "")  # values that only say that there is one


def in_node_words(setting: str, value: str = "") -> str:
    """Call a setting by a node's input: `anchor`."""
    named = f"`{INPUTS.get(setting, setting)}`" if setting.isidentifier() else setting
    return named if value in _STANDING_FOR else f"{named} {value}"


def said(error: BaseException) -> str:
    """Say what went wrong, in the words of the nodes."""
    return error.worded(in_node_words) if isinstance(error, TrustError) else str(error)


def worded(work: Callable[..., Any]) -> Callable[..., Any]:
    """Let what a node raises be told in its words; all else passes as it is."""

    @functools.wraps(work)
    def told(*args: Any, **inputs: Any) -> Any:
        try:
            return work(*args, **inputs)
        except TrustError as error:
            raise type(error)(error.worded(in_node_words)) from error

    return told
