"""The tab's part for the diffs on every picture: what is on, and how that is changed."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from trust_engine.errors import SpecError, TrustError

from . import always_on, job_status
from .asked_diffs import Wanted, written
from .one_line import one_line

ABOUT = (
    "Diffs that are on every picture that this server draws, whoever asks for it, also after a "
    "restart. If one of them is missing or does not fit, nothing is drawn, and the reason is said."
)


def build(chosen: Any) -> None:
    """Build it; chosen: the list of diffs above it."""
    gr.Markdown(ABOUT)
    shown = gr.Textbox(label="On every picture now (name@hash*strength)", value=_now, lines=2,
                       interactive=False, elem_id="trust_standing")  # fmt: skip
    with gr.Row():
        strength = gr.Slider(-2.0, 2.0, value=1.0, step=0.05, label="Strength",
                             elem_id="trust_standing_strength")  # fmt: skip
        put = gr.Button("Put the chosen diff on every picture", elem_id="trust_standing_put")
        take = gr.Button("Take the chosen diff off", elem_id="trust_standing_take")
        clear = gr.Button("Take all off", elem_id="trust_standing_clear")
        look = gr.Button("Refresh", elem_id="trust_standing_refresh")
    told = gr.HTML(elem_id="trust_standing_told")
    put.click(_put, [shown, chosen, strength], [told, shown])
    take.click(_take, [shown, chosen], [told, shown])
    clear.click(_clear, [shown], [told, shown])
    look.click(lambda: ("", _now()), [], [told, shown])


def _now() -> str:
    try:
        return always_on.text()
    except TrustError as error:
        return one_line(error)


def _changed(seen: str, change: Callable[[], list[Wanted]]) -> tuple[str, str]:
    try:
        warnings = always_on.put_seen(change(), seen or "")
    except TrustError as error:
        return job_status.problem(error), _now()
    rows = [f"On every picture from now on: {_now() or 'nothing'}.", *warnings]
    return "".join(f"<p>{escape(one_line(row))}</p>" for row in rows), _now()


def _put(seen: str, name: str | None, strength: float) -> tuple[str, str]:
    def change() -> list[Wanted]:
        others = [one for one in always_on.always() if one.name != name]
        return [*others, Wanted(_named(name), strength)]

    return _changed(seen, change)


def _take(seen: str, name: str | None) -> tuple[str, str]:
    def change() -> list[Wanted]:
        on = always_on.always()
        if _named(name) not in [one.name for one in on]:
            raise SpecError(f"{name} is not on every picture; on are: {written(on) or 'none'}")
        return [one for one in on if one.name != name]

    return _changed(seen, change)


def _clear(seen: str) -> tuple[str, str]:
    return _changed(seen, list)


def _named(name: str | None) -> str:
    if not name:
        raise SpecError("choose a diff first")
    return name
