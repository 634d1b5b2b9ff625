"""Our section of the host's Settings page."""

from __future__ import annotations

from typing import Any

from trust_engine.frontend.subjects import COUNT
from trust_engine.unlearn.effort import EFFORTS

from . import folders
from .wording import REFUSE_OTHERS

SECTION = ("trust_unlearn", "TRUST Unlearn")


def add() -> None:
    """Add the entries; the host calls this while it builds Settings.

    The diffs on every picture are not among them: always_on.py says why.
    """
    import gradio as gr
    from modules import shared

    def option(default: Any, label: str, kind: Any = None, **settings: Any) -> Any:
        return shared.OptionInfo(default, label, kind or gr.Textbox, settings, section=SECTION)

    entries = {
        "trust_diffs_folder": option(
            "", f"Folder of diffs (empty: models/{folders.DIFFS})"
        ),
        "trust_effort": option(
            "normal", "Effort that the tab begins with", gr.Radio, choices=list(EFFORTS)
        ),
        "trust_pictures": option(
            COUNT, "Test pictures before and after that the tab begins with",
            gr.Slider, minimum=0, maximum=16, step=2,
        ),
        "trust_strict": option(
            False, REFUSE_OTHERS, gr.Checkbox,
        ),
        "trust_runs": option(
            True, "Keep runs on disk: stopped ones go on when they are started again, finished "
            "ones are not trained again", gr.Checkbox,
        ),
        "trust_about_always": shared.OptionHTML(
            "Diffs on every picture are put on and taken off in the tab TRUST, under "
            "<b>On every picture</b>: what is on cannot be taken off here by a page that was "
            "opened before."
        ),
    }  # fmt: skip
    entries["trust_about_always"].section = SECTION
    for name, entry in entries.items():
        shared.opts.add_option(name, entry)


def option(name: str, default: Any) -> Any:
    """Read one of our settings."""
    from modules import shared

    return getattr(shared.opts, name, default)
