"""The line above the button: what a run would take, kept true while the form is filled in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from trust_engine.errors import TrustError

from . import showing
from .expecting import estimate, expect
from .form import NAMES, Form, filled
from .host import current
from .jobs import ESTIMATE, JOBS, Job
from .lines import one_line

ANYTHING = "thing"  # stands for what to forget while nothing is typed: the word costs nothing
NOT_YET = "Expected time and memory are shown here as soon as a checkpoint is loaded."
TYPED = ("words", "also", "partner", "preserve", "anchor")
SWITCHED = ("kind", "objective", "effort", "engine", "robust")
DRAWN = ("resolution", "pictures", "passes")
_one = threading.Lock()


def build(fields: dict[str, Any]) -> Callable[[Any], Any]:
    """Build the line, and let it follow the fields; returns what lets it follow other events."""
    line = gr.HTML(_line(NOT_YET), elem_id="trust_expected")
    inputs = [fields[name] for name in NAMES]

    def follow(event: Any) -> Any:
        return event(expected, inputs, [line], show_progress="hidden", **showing.unlimited())

    for name in TYPED:
        follow(fields[name].blur)
        follow(fields[name].submit)
    for name in SWITCHED:
        follow(fields[name].change)
    for name in DRAWN:
        follow(fields[name].release)
    return follow


def expected(*values: Any) -> Iterator[str]:
    """Yield the line: at once for a checkpoint that has been timed, else after timing it."""
    try:
        form = filled(dict(zip(NAMES, values, strict=True)))
        yield from _told(form)
    except TrustError as error:
        yield _line(f"Expected time and memory: {one_line(error)}")


def _told(form: Form) -> Iterator[str]:
    host, typed = current(), bool(form.words.strip())
    order = form.order if typed else replace(form, words=ANYTHING).order
    if not typed and not host.ready:  # nobody has asked for a checkpoint to be loaded
        yield _line(NOT_YET)
        return
    while (told := estimate(host, order)) is None:
        with _one:  # several fields may ask at once
            job = _timing() or JOBS.start(ESTIMATE, order.spec.name, expect(order))
        while not job.over:
            yield _line(f"Expected time and memory: {job.stage} ...")
            time.sleep(showing.EVERY)
        if job.state != "done":
            yield _line(f"Expected time and memory: {job.message}")
            return
    yield _line(told.brief)


def _timing() -> Job | None:
    job = JOBS.latest(ESTIMATE)
    return None if job is None or job.over else job


def _line(text: str) -> str:
    return f"<p>{escape(text)}</p>"
