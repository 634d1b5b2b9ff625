"""Where runs are kept in a web UI, and the button that clears them."""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr
from modules import paths_internal

from trust_engine.errors import TrustError
from trust_engine.unlearn.run_store import RunStore, user_store

from . import settings
from .one_line import one_line

FOLDER = "trust-runs"


def folder() -> Path:
    """Return the folder of runs, among the host's outputs."""
    return Path(paths_internal.default_output_dir) / FOLDER


def store() -> RunStore | None:
    """Open the store of runs; None when the setting or the environment switches it off."""
    return user_store(folder()) if settings.option("trust_runs", True) else None


def build() -> None:
    """Build the part of the tab that shows what is kept and clears it."""
    gr.Markdown(
        "A run or an audit is kept while it works: stopped, by whatever, it goes on when it is "
        "started again with the same inputs. A finished one is not computed again. Settings "
        "switches this off."
    )
    told = gr.HTML(elem_id="trust_runs")
    with gr.Row():
        look = gr.Button("Show what is kept", elem_id="trust_runs_show")
        clear = gr.Button("Clear kept runs", elem_id="trust_runs_clear")
    look.click(lambda: _told(clear=False), [], [told])
    clear.click(lambda: _told(clear=True), [], [told])


def _told(clear: bool) -> str:
    try:
        found = user_store(
            folder()
        )  # also while it is switched off: what lies there can be cleared
        if found is None:
            return "<p>Runs are not kept: switched off by the environment.</p>"
        kept = found.clear() if clear else found.contents
        return f"<p>{'Removed' if clear else escape(str(found.folder)) + ':'} {kept}</p>"
    except TrustError as error:
        return f"<p>{escape(one_line(error))}</p>"
