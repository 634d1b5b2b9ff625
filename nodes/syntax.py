"""Prompts as they are spelled: what the host would take for emphasis or an embedding is text."""

from __future__ import annotations

import re

EMBEDDING = re.compile(r"embedding:", re.IGNORECASE)


def literal(prompt: str) -> str:
    """Write a prompt so that the host's tokenizer reads it word for word.

    Brackets are escaped. CLIP's tokenizer parts letters from signs by itself: a space between them
    changes no token, and the host no longer sees an embedding's name.
    """
    return re.sub(r"([()])", r"\\\1", EMBEDDING.sub(lambda found: f"{found[0][:-1]} :", prompt))
