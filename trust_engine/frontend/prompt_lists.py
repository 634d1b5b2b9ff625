"""What a run asks of a model, prompt by prompt: erased, preserved, and drawn by robust mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..unlearn.run import Unlearning

NOTHING = "(the empty prompt)"


@dataclass(frozen=True)
class PromptLists:
    """A run's prompts.

    erased: pairs of a prompt and its anchor; shown, stays: a picture each, of every concept and of
    what must stay, empty without robust mode.
    """

    erased: tuple[tuple[str, str], ...]
    preserved: tuple[str, ...]
    shown: Mapping[str, tuple[str, ...]]
    stays: tuple[str, ...]

    def __str__(self) -> str:
        answered = [f"{target} -> {anchor or NOTHING}" for target, anchor in self.erased]
        parts = [
            f"{len(self.erased)} prompts are erased, each answered as the one behind the arrow:",
            *indented(answered),
            f"{len(self.preserved)} prompts must be answered as before:",
            *indented(self.preserved),
        ]
        for name, prompts in self.shown.items():
            often = [f"{p} (x{n})" if n > 1 else p for p, n in Counter(prompts).items()]
            parts += [f"{len(prompts)} pictures show {name}:", *indented(often)]
        if self.stays:
            parts += [f"{len(self.stays)} pictures show what must stay:", *indented(self.stays)]
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Spell them out for programs."""
        told: dict[str, Any] = {
            "erased": [list(pair) for pair in self.erased],
            "preserved": list(self.preserved),
        }
        if self.stays:
            told |= {"shown": {k: list(v) for k, v in self.shown.items()}, "stays": [*self.stays]}
        return told


def prompt_lists(run: Unlearning) -> PromptLists:
    """List a run's prompts as they stand: once it has asked, as they are used."""
    prompts, lists = run.prompts, run.lists
    erased = tuple(zip(prompts.targets, prompts.anchors, strict=True))
    if lists is None:
        return PromptLists(erased, prompts.preserve, {}, ())
    names = (concept.name for concept in run.spec.concepts)
    shown = dict(zip(names, lists.concepts, strict=True))
    return PromptLists(erased, prompts.preserve, shown, lists.rest)


def indented(lines: Iterable[str]) -> list[str]:
    """Set lines off from the heading above them."""
    return [f"  {line}" for line in lines]
