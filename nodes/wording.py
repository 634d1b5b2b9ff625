"""The engine's messages in the words of the nodes: they name options of the command line."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from ..trust_engine.errors import TrustError

_ASIDE = re.compile(r" \(--json[^)]*\)")  # what another format would show
_OPTION = re.compile(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)(?: (?:TEXT|PATH|FILE))?")


def in_node_words(text: str) -> str:
    """Name inputs as the nodes do: `anchor` for --anchor TEXT."""
    return _OPTION.sub(lambda found: f"`{found[1].replace('-', '_')}`", _ASIDE.sub("", text))


def worded(work: Callable[..., Any]) -> Callable[..., Any]:
    """Let what a node raises be told in its words; all else passes as it is."""

    @functools.wraps(work)
    def told(*args: Any, **inputs: Any) -> Any:
        try:
            return work(*args, **inputs)
        except TrustError as error:
            error.args = (in_node_words(str(error)),)
            raise

    return told
