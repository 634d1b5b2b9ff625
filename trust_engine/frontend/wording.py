"""How figures and lists are put into words."""

from __future__ import annotations

from collections.abc import Iterable

FEW = 6


def some(prompts: Iterable[str], few: int = FEW) -> str:
    """Spell out a few of many prompts, evenly drawn, and say how many more there are."""
    all_of_them = list(dict.fromkeys(prompts))
    if len(all_of_them) <= few + 1:
        return ", ".join(all_of_them)
    shown = all_of_them[:: len(all_of_them) // few][:few]
    return f"{', '.join(shown)} and {len(all_of_them) - few} more"


def spelled(seconds: float) -> str:
    """Spell a span of time out."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def sized(count: float) -> str:
    """Spell a number of bytes out, in binary units: a demo's millions are no "0.0 GB"."""
    return f"{count / 2**20:.0f} MB" if count < 2**30 else f"{count / 2**30:.1f} GB"
