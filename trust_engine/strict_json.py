"""Text and JSON as people and programs write it: any UTF, its mark or none; no name twice."""

from __future__ import annotations

import json
from typing import Any


def parse(text: str | bytes) -> Any:
    """Read JSON; raises ValueError for what is none, and for an object with a name twice."""
    if isinstance(text, bytes):
        text = decoded(text)
    return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=without_repeats)


def decoded(content: bytes) -> str:
    """Read a text in any UTF, without its mark; raises ValueError for what is none."""
    try:
        return content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError("it is no text in UTF-8 or UTF-16; save it as UTF-8") from error


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object from its pairs; raises ValueError for a name given twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:60]!r} is given twice")
    return found
