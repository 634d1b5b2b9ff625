"""The engine's errors in the words of the tab."""

from __future__ import annotations

from trust_engine.errors import plainly
from trust_engine.spec import SETTINGS

REFUSE_OTHERS = "Refuse diffs that were made from another checkpoint of the same family"
"""The label of a setting."""

LABELS = {
    "words": "Forget",
    "concept": "Forget",
    "kind": "Kind",
    "partner": "With, or when",
    "companion": "With, or when",
    "condition": "With, or when",
    "preserve": "Preserve: what must keep its look",
    "anchor": "Draw instead",
    "also": "Forget in the same run",
    "template": "Sentences of your own",
    "templates": "Sentences of your own",
    "stays": "Pictures of what must stay (robust)",
    "effort": "Effort",
    "resolution": "Resolution",
    "pictures": "Pictures before and after",
    "judge": "Judge",
    "level": "Level",
    "retain": "What should stay",
    "images": "Pictures an object",
    "strict": f"Settings > TRUST Unlearn > {REFUSE_OTHERS!r}",
}
"""The tab's fields by the names that they have in the engine and the API."""


def in_tab_words(setting: str, value: str = "") -> str:
    """Call a setting by its field's label."""
    label = LABELS.get(setting) or (SETTINGS[setting].label if setting in SETTINGS else "")
    value = "" if value == "TEXT" else value
    return f"{label}: {value}".removesuffix(": ") if label else plainly(setting, value)
