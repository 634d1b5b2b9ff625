"""TRUST Prompts: what a run would erase, preserve and, in robust mode, draw."""

from __future__ import annotations

from typing import Any, ClassVar

from ..trust_engine.frontend.prompt_lists import PromptLists, prompt_lists
from ..trust_engine.frontend.run_report import sentence
from ..trust_engine.spec import ConceptSpec
from ..trust_engine.unlearn.run import Unlearning
from .declaring import Output, node
from .inputs import socket, switch
from .lending import lend
from .progress import Bar, sparing
from .settings import DEFAULTS, Settings, compose
from .sockets import CONCEPT, SETTINGS


@node("show", ends=True, hidden=("unique_id",))
class TrustPrompts:
    """List a run's prompts without making it."""

    DESCRIPTION = (
        "Shows, before a run, what is erased and answered as what, what must stay, and which "
        "pictures robust mode draws. Trains nothing. To choose its pictures of what must stay "
        "yourself, connect `stays` to Unlearn's `stays`, or paste it there and edit it."
    )

    REQUIRED: ClassVar = {
        "model": socket("MODEL", "SD 1.x, SD 2.x or SDXL. It is asked which words it draws as the "
                        "concept, and not changed."),
        "clip": socket("CLIP", "The model's text encoder."),
        "concept": socket(CONCEPT, "What to forget; of a chain all concepts."),
        "robust": switch(DEFAULTS["robust"], "As in Unlearn: also list the pictures that robust "
                         "mode draws."),
    }  # fmt: skip
    OPTIONAL: ClassVar = {
        "settings": socket(SETTINGS, "From Unlearn Settings; Unlearn needs the same."),
    }
    GIVES: ClassVar = (
        Output("prompts", "STRING", "All prompts, as the node shows them."),
        Output("stays", "STRING", "What robust mode's pictures of what must stay show, a prompt a "
               "line, for Unlearn's `stays`. Empty without robust."),
    )  # fmt: skip

    def show(
        self,
        model: Any,
        clip: Any,
        concept: tuple[ConceptSpec, ...],
        robust: bool,
        settings: Settings | None = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        """Ask the model what it knows of the words, as a run does first, and list the prompts."""
        spec = compose(concept, settings, "normal", robust=robust)
        resolution = settings.resolution if settings else 0

        def work(small: bool) -> tuple[PromptLists, list[str]]:
            lent = lend(model, clip, resolution)
            if small:
                lent.host.rows = 2
            run = Unlearning(lent.model, spec)
            ask(run, unique_id)
            return prompt_lists(run), [sentence(told) for told in run.warnings]

        advice = "lower `resolution` in Unlearn Settings"
        (found, warned), said = sparing(unique_id, work, "2 rows at a time", advice)
        text = str(found)
        ui = {"text": ["\n".join([*said, *warned, text])]}
        return {"ui": ui, "result": (text, "\n".join(found.stays))}


def ask(run: Unlearning, node: str | None) -> None:
    """Let a run ask, under the host's progress bar; its interrupt ends it at the next UNet call."""
    total = run.asking
    bar = Bar(node, total)
    for report in run.ask():
        bar.update(report.done, total)
