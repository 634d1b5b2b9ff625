"""TRUST Load Diff, Apply Diff and Merge Diffs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any, ClassVar

from ..trust_engine.diff import WeightDiff, combine, load_diff, overlap, refuse_empty
from ..trust_engine.diff.label import describe, label
from .declaring import Output, node
from .folders import DIFFS, NO_FILES, found, listed
from .host import schedule_of
from .inputs import choice, number, socket, switch, verdict
from .patching import check_fits, patched
from .sockets import DIFF
from .weights import Weights

MODES = ("sum", "mean", "strongest")
STRENGTH = "1: as made. 0: off. Below 0 it adds what it was made to remove."


@node("load", shown_again=True)
class TrustLoadDiff:
    """Read a diff file; everything in it is checked before it is used."""

    DESCRIPTION = f"Loads a diff from `models/{DIFFS}`. Its label says what it forgets."
    GIVES: ClassVar = (
        Output("diff", DIFF, "The diff."),
        Output("label", "STRING", "What it says of itself: concept, base, audit, licence."),
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = listed() or [NO_FILES]
        tooltip = f"A .safetensors file in the folder {DIFFS}; press R to list new ones."
        return {"required": {"diff_name": choice(names, names[0], tooltip)}}

    @classmethod
    def IS_CHANGED(cls, diff_name: str, **_others: Any) -> Any:
        """Run again when the file is another."""
        told = os.stat(found(diff_name))
        return f"{told.st_mtime_ns}:{told.st_size}"

    @classmethod
    def VALIDATE_INPUTS(cls, diff_name: str | None = None) -> bool | str:
        """Refuse a file that is not there, also one that was there when the page was loaded."""
        return diff_name is None or verdict(lambda: found(diff_name))

    def load(self, diff_name: str) -> dict[str, Any]:
        """Return the diff and its label."""
        path = found(diff_name)
        diff = load_diff(path)
        told = describe(diff, path.stat().st_size)
        text = label(path.name, told)
        return {"ui": {"text": [text]}, "result": (diff, text)}


@node("apply", shown_again=True)
class TrustApplyDiff:
    """Put a diff on a MODEL, as a patch that the host takes off by itself."""

    DESCRIPTION = "Applies a diff to a model. Chain several. The model's file is never written."

    REQUIRED: ClassVar = {
        "model": socket("MODEL", "A model of the family that the diff was made for."),
        "diff": socket(DIFF, "From Load Diff, Unlearn or Merge Diffs."),
        "strength": number(1.0, -2.0, 2.0, 0.05, STRENGTH),
    }
    OPTIONAL: ClassVar = {
        "strict": switch(False, "Refuse any base but the one that the diff was made from."),
    }
    GIVES: ClassVar = (
        Output("model", "MODEL", "The model under the diff."),
        Output("note", "STRING", "Empty, or a warning about another base."),
    )

    def apply(
        self, model: Any, diff: WeightDiff, strength: float, strict: bool = False
    ) -> dict[str, Any]:
        """Check that it fits, and return the patched clone."""
        plain, whole = Weights(model, ours=False), Weights(model)
        stored = plain.check_storage()
        prints = [plain.fingerprint()]
        if diff.provenance.get("base") != prints[0]:
            prints.append(whole.fingerprint())
        prediction = schedule_of(model).prediction
        fits = check_fits(diff, whole.shapes, prints, prediction, strict=strict)
        note = "; ".join(told for told in (fits, stored) if told)
        result = (patched(model, diff, strength), note)
        return {"ui": {"text": [note] if note else []}, "result": result}


@node("merge", shown_again=True)
class TrustMergeDiffs:
    """Make one diff of two."""

    DESCRIPTION = "Merges two diffs of one family into one, and says how they get along."

    REQUIRED: ClassVar = {
        "diff_a": socket(DIFF, "The first diff."),
        "diff_b": socket(DIFF, "The second diff; merge the result again for a third."),
        "strength_a": number(1.0, -2.0, 2.0, 0.05, STRENGTH),
        "strength_b": number(1.0, -2.0, 2.0, 0.05, STRENGTH),
        "how": choice(MODES, MODES[0], "Where both move one entry: sum them, as applying "
                      "one after the other does; take the mean; or keep the larger."),
    }  # fmt: skip
    GIVES: ClassVar = (
        Output("diff", DIFF, "The merged diff."),
        Output("report", "STRING", "How far the two touch the same neurons."),
    )

    def merge(
        self, diff_a: WeightDiff, diff_b: WeightDiff, strength_a: float, strength_b: float, how: str
    ) -> dict[str, Any]:
        """Return the merged diff and how the two get along."""
        merged = combine([(diff_a, strength_a), (diff_b, strength_b)], how)  # type: ignore[arg-type]
        refuse_empty(merged)
        told = overlap(diff_a, diff_b)
        text = (
            f"{told.verdict}: {told.shared:,} entries in common, {told.of_first:.1%} of the first "
            f"and {told.of_second:.1%} of the second ({told.by_chance:.1%} by chance); "
            f"{told.opposed:.0%} of them move in opposite directions"
        )
        return {"ui": {"text": [text]}, "result": (merged, text)}


def with_notes(diff: WeightDiff, **notes: Any) -> WeightDiff:
    """Add notes that are not empty."""
    kept = {key: value for key, value in notes.items() if value}
    return replace(diff, notes={**diff.notes, **kept})


def as_json(value: Any) -> str:
    """Spell a report out."""
    return json.dumps(value, indent=1, allow_nan=False)
