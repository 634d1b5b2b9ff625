"""What finished runs showed, by what they were asked: a page that is reloaded can ask again.

A host that answers from its cache may not say again what a node showed; ComfyUI 0.3.64 does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Prompt = Mapping[str, Mapping[str, Any]]
KEPT = 32  # runs
_shown: dict[str, dict[str, Any]] = {}


def ancestry(prompt: Prompt, node: str) -> str:
    """Hash what a node's result hangs on: itself and all nodes before it, as the cache does."""
    told = prompt[node]
    inputs = {
        name: [ancestry(prompt, value[0]), value[1]] if _is_link(prompt, value) else value
        for name, value in told["inputs"].items()
    }
    text = json.dumps([told["class_type"], inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def remember(prompt: Prompt | None, node: str | None, shown: dict[str, Any]) -> None:
    """Keep what a node showed, unless the host does not tell what it was asked."""
    if prompt is None or node not in prompt:
        return
    key = ancestry(prompt, node)
    _shown.pop(key, None)
    _shown[key] = shown
    while len(_shown) > KEPT:
        _shown.pop(next(iter(_shown)))


def recalled(prompt: Prompt | None, node: str) -> dict[str, Any] | None:
    """Return what a node showed when it was asked the same; None if it was not, or long ago."""
    return None if prompt is None or node not in prompt else _shown.get(ancestry(prompt, node))


def _is_link(prompt: Prompt, value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and str(value[0]) in prompt
