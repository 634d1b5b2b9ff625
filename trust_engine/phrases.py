"""Which words a phrase has, and whether one text names another."""

from __future__ import annotations

import re


def words_of(text: str) -> list[str]:
    """List a text's words in small letters."""
    return re.findall(r"[^\W_]+", text.lower())


def bare(phrase: str) -> list[str]:
    """List a phrase's words but for an article at its start."""
    words = words_of(phrase)
    return words[1:] if words[:1] in (["a"], ["an"], ["the"]) and words[1:] else words


def holds(text: str, phrase: str) -> bool:
    """Tell whether a normalised text has a phrase in it, as whole words, plural or not."""
    words = [re.escape(word) for word in words_of(phrase)]
    return bool(words and re.search(rf"\b{' '.join(words)}(s|es)?\b", text))


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase that starts without an article."""
    first = phrase.split()[0].lower()
    if first in {"a", "an", "the"}:
        return phrase
    vowel = first[0] in "aeio" or (first[:2] in {"ug", "um", "un", "up"} and first[:3] != "uni")
    return f"{'an' if vowel else 'a'} {phrase}"
