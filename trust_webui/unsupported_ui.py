"""The tab in web UIs that TRUST Unlearn does not work in: one sentence, and nothing else."""

from __future__ import annotations

from typing import Any

from . import which_ui


def open_door() -> None:
    """Register the tab alone: no accordion that could be believed in, no settings, no routes."""
    from modules import script_callbacks

    script_callbacks.on_ui_tabs(build)


def build() -> list[tuple[Any, str, str]]:
    """Build the tab, as the host's on_ui_tabs wants it."""
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as page:
        gr.Markdown(which_ui.sentence())
    return [(page, "TRUST", "trust")]
