"""TRUST Unlearn Settings: everything that the Unlearn node does not ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..trust_engine.spec import CHOICES, ConceptSpec, UnlearnSpec
from ..trust_engine.unlearn.effort import DEFAULTS, EFFORTS, steps_of
from .inputs import choice, number, switch
from .kinds import CATEGORY, SETTINGS

__all__ = ["DEFAULTS", "EFFORTS", "Settings", "TrustUnlearnSettings", "compose"]


@dataclass(frozen=True)
class Settings:
    """Fields of the spec that differ from the engine's, and the size of what is recorded."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    resolution: int = 0


class TrustUnlearnSettings:
    """Settings for those who want to look under the bonnet."""

    DESCRIPTION = "Optional settings for Unlearn and Find Neurons. What it starts with is sensible."
    CATEGORY = CATEGORY
    RETURN_TYPES = (SETTINGS,)
    RETURN_NAMES = ("settings",)
    OUTPUT_TOOLTIPS = ("Connect to Unlearn, and to Find Neurons if you use it.",)
    FUNCTION = "collect"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        d = DEFAULTS
        return {
            "required": {
                "saliency": choice(
                    ("attention", "noise"),
                    d["saliency"],
                    "Where concept neurons are read from: each layer's own effect, or the whole "
                    "UNet's (slower, needs a private copy of the UNet).",
                ),
                "xi": number(d["xi"], -10.0, 100.0, 0.1, "How far an entry must stand out to be a "
                             "concept neuron, in z-scores. Higher: fewer neurons. For Find Neurons "
                             "and a bounded schedule; a shrinking one goes without."),
                "granularity": choice(CHOICES["granularity"], d["granularity"],
                                      "Choose single entries, rows, or whole heads."),
                "pool": choice(CHOICES["pool"], d["pool"],
                               "Compare entries within a layer, or within each of q, k and v. "
                               "For Find Neurons and a bounded schedule."),
                "schedule": choice(CHOICES["schedule"], d["schedule"],
                                   "bounded: the most salient entries, never more than the budget. "
                                   "shrinking: begin with all and keep fewer and fewer, down to "
                                   "the budget."),
                "refresh": number(d["refresh"], 0, 100_000, 1,
                                  "Look for the neurons anew every so many steps. 0: only once."),
                "rate": number(d["rate"], 0.001, 10.0, 0.01,
                               "Size of a training step. Lower it if the loss is not finite."),
                "beta": number(d["beta"], 0.0, 1000.0, 0.5, "Weight of what must stay. Higher: "
                               "others keep better, the concept goes more slowly."),
                "lam": number(d["lam"], 0.0, 1000.0, 0.01,
                              "Weight of the objective's penalty (lambda in the paper)."),
                "gamma": number(d["gamma"], -100.0, 100.0, 0.1, "CIP only: its threshold."),
                "tau": number(d["tau"], 0.01, 100.0, 0.05, "CIP only: how soft the threshold is."),
                "eta": number(d["eta"], 0.0, 10.0, 0.1, "How far beyond the anchor to push. 0: to "
                              "it; more removes harder and may cost more elsewhere."),
                "trajectory_steps": number(d["trajectory_steps"], 1, 100, 1,
                                           "Denoising steps of each recorded picture."),
                "cfg": number(d["cfg"], 1.0, 30.0, 0.5, "Guidance of the recorded pictures."),
                "passes": number(d["passes"], 16, 100_000, 16, "UNet passes that recording may "
                                 "take for a concept. Fewer: faster, from fewer recorded prompts."),
                "stop_effect": number(d["stop_effect"], 0.0, 10.0, 0.01,
                                      "Stop early when less than this is left. 0: never."),
                "stop_harm": number(d["stop_harm"], 0.0, 10.0, 0.01,
                                    "Stop early only while what must stay changes less than this."),
                "hessian": choice(CHOICES["hessian"], d["hessian"],
                                  "How the penalty's gradient is taken; auto chooses."),
                "checkpointing": switch(d["checkpointing"], "Global engine: less memory, slower."),
                "resolution": number(0, 0, 2048, 8, "Side in pixels of what is recorded. 0: the "
                                     "size that the model was trained at. Smaller: less memory."),
            }
        }  # fmt: skip

    def collect(self, resolution: int, **fields: Any) -> tuple[Settings]:
        """Return the settings."""
        return (Settings(fields, resolution),)


def compose(
    concepts: tuple[ConceptSpec, ...], settings: Settings | None, effort: str, **asked: Any
) -> UnlearnSpec:
    """Put a spec together: what the node asks for, on what the settings node says."""
    fields = dict(settings.fields) if settings else {}
    return UnlearnSpec(concepts, **{**fields, "steps": steps_of(effort), **asked})
