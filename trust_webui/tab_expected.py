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

from . import job_status
from .estimate import estimate, expect
from .form import NAMES, Form, filled
from .host import Host, current
from .jobs import ESTIMATE, JOBS, Job
from .one_line import one_line
from .unlearn_job import Order

ANYTHING = "thing"  # stands for what to forget while nothing is typed: the word costs nothing
NOT_YET = "Expected time and memory are shown here as soon as a checkpoint is loaded."
TYPED = ("words", "also", "partner", "preserve", "anchor", "templates", "stays")
SWITCHED = ("kind", "objective", "effort", "engine", "robust")
DRAWN = ("resolution", "pictures", "passes")
LONGEST_TURN = 5.0  # seconds that one who has asked waits for those before: a page may be closed
_one = threading.Lock()
_waiting: list[object] = []  # who waits for a timing, in the order of asking


def build(fields: dict[str, Any]) -> Callable[[Any], Any]:
    """Build the line, and let it follow the fields; returns what lets it follow other events."""
    line = gr.HTML(_line(NOT_YET), elem_id="trust_expected")
    inputs = [fields[name] for name in NAMES]

    def follow(event: Any) -> Any:
        return event(expected, inputs, [line], show_progress="hidden", **job_status.unlimited())

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
    if (told := estimate(host, order)) is None:
        yield from _timed(host, order, order.spec.name if typed else "any concept")
    else:
        yield _line(told.brief)


def _timed(host: Host, order: Order, title: str) -> Iterator[str]:
    """Time the checkpoint, or wait until it is timed; who has asked last also answers last.

    The form may have been changed meanwhile: an older answer must not stand there in the end.
    """
    mine = object()
    _waiting.append(mine)
    try:
        while (told := estimate(host, order)) is None:
            with _one:  # several fields may ask at once
                job = _timing() or JOBS.start(ESTIMATE, title, expect(order))
            while not job.over:
                yield _line(f"Expected time and memory: {job.stage} ...")
                time.sleep(job_status.EVERY)
            if job.state != "done":
                break
        until = time.monotonic() + LONGEST_TURN
        while _waiting[0] is not mine and time.monotonic() < until:
            time.sleep(job_status.EVERY / 20)
        yield _line(told.brief if told else f"Expected time and memory: {job.message}")
    finally:
        _waiting.remove(mine)


def _timing() -> Job | None:
    job = JOBS.latest(ESTIMATE)
    return None if job is None or job.over else job


def _line(text: str) -> str:
    return f"<p>{escape(text)}</p>"
