"""TRUST Unlearn Settings: everything that the Unlearn node does not ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..trust_engine.spec import DEFAULTS, ConceptSpec, UnlearnSpec
from ..trust_engine.unlearn.effort import EFFORTS, steps_of
from .declaring import Output, node
from .inputs import number, setting
from .sockets import SETTINGS

SHOWN = (
    "xi", "schedule", "refresh", "rate", "beta", "lam", "gamma", "tau", "eta", "trajectory_steps",
    "cfg", "passes", "stop_effect", "stop_harm", "checkpointing",
)  # fmt: skip
"""In this order: a workflow file keeps its values by place."""
__all__ = ["DEFAULTS", "EFFORTS", "Settings", "TrustUnlearnSettings", "compose"]


@dataclass(frozen=True)
class Settings:
    """Fields of the spec that differ from the engine's, and the size of what is recorded."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    resolution: int = 0


@node("collect")
class TrustUnlearnSettings:
    """Settings for those who want to look under the bonnet."""

    DESCRIPTION = (
        "Optional settings for Unlearn, Find Neurons and Prompts. What it starts with is sensible."
    )

    REQUIRED: ClassVar = {
        "saliency": setting("saliency", "attention", "noise"),
        **{name: setting(name) for name in SHOWN},
        "resolution": number(0, 0, 2048, 8, "Side in pixels of what is recorded. 0: the "
                             "size that the model was trained at. Smaller: less memory."),
        "syntax": setting("syntax"),
        "sampling": setting("sampling"),
    }  # fmt: skip
    GIVES: ClassVar = (
        Output(
            "settings",
            SETTINGS,
            "Connect to Unlearn, and to Find Neurons and Prompts if you use them.",
        ),
    )

    def collect(self, resolution: int, **fields: Any) -> tuple[Settings]:
        """Return the settings."""
        return (Settings(fields, resolution),)


def compose(
    concepts: tuple[ConceptSpec, ...], settings: Settings | None, effort: str, **asked: Any
) -> UnlearnSpec:
    """Put a spec together: what the node asks for, on what the settings node says."""
    fields = dict(settings.fields) if settings else {}
    spec = UnlearnSpec(concepts, **{**fields, "steps": steps_of(effort), **asked})
    spec.refuse_unheeded()
    return spec
