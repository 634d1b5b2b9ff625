"""The tab's button for those without a checkpoint: the demo model, laid out and chosen."""

from __future__ import annotations

import time
from html import escape

import gradio as gr

from trust_engine.errors import TrustError

from . import demo_model, job_status

BUTTON = "Try it on the demo model: lay it out and switch to it"


def build() -> None:
    """Build the button and the line below it."""
    button = gr.Button(BUTTON, elem_id="trust_demo", size="sm")
    told = gr.HTML(elem_id="trust_demo_told")
    button.click(_lay, [], [told])


def _lay() -> str:
    """Lay the model out; the page's script sees the name, and chooses it as a user would."""
    try:
        path = demo_model.lay()
    except TrustError as error:
        return job_status.problem(error)
    name = escape(path.name, quote=True)
    return (
        f'<p id="trust_demo_laid" data-checkpoint="{name}" data-time="{time.time()}">'
        f"<b>{name}</b> is in the web UI's list and is being chosen; if it is not, choose it at "
        f"the top of the page. {demo_model.NEXT}</p>"
    )
