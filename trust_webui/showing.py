"""What the tab shows of a job: status, bar and pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr
from PIL import Image

from trust_engine.frontend.charts import chart, stacked
from trust_engine.frontend.pictures import PAPER
from trust_engine.frontend.wording import spelled

from .jobs import JOBS, Job
from .work import Unlearned

EVERY = 0.5  # seconds between two looks at a job
REDRAW = 2.0  # seconds between two charts
KINDS = {"unlearn": "Unlearning", "audit": "Audit of"}
COLOURS = {"failed": "#b91c1c", "stopped": "#b45309", "done": "#15803d"}


def status(job: Job | None) -> str:
    """Lay out a job's status: what it is, how far, what it says."""
    if job is None:
        return "<p>Nothing has been started yet.</p>"
    left = "" if job.left is None else f", about {spelled(job.left)} left"
    head = (
        f"{KINDS.get(job.kind, escape(job.kind))} <b>{escape(job.title)}</b>: {escape(job.state)}"
    )
    if job.state == "running":
        head += f", {escape(job.stage)} ({job.done} of {job.total}{left})"
    elif job.started:
        head += f" after {spelled(job.seconds)}"
    colour = COLOURS.get(job.state, "#4f46e5")
    share = f"{100 * job.progress:.0f}%"
    bar = (f'<div style="background:#8884;border-radius:4px;height:8px">'
           f'<div style="background:{colour};border-radius:4px;height:8px;width:{share}"></div>'
           "</div>")  # fmt: skip
    said = [job.message] if job.message else []
    notes = "".join(f"<p>{escape(line)}</p>" for line in [*said, *job.said])
    return f'<div id="trust_state_{job.state}"><p>{head}</p>{bar}{notes}</div>'


def problem(error: Exception) -> str:
    """Lay out what the user has to mend."""
    text = escape(" ".join(str(error).split()))
    return f'<p id="trust_problem" style="color:{COLOURS["failed"]}">{text}</p>'


def followed(job: Job | None) -> Iterator[tuple[Any, ...]]:
    """Yield (status, gallery, chart, neurons, report, name of the diff) until a job is over."""
    drawn, points = 0.0, 0
    while job is not None and not job.over:
        picture = gr.update()
        count = sum(map(len, job.curves.values()))
        if count != points and time.monotonic() - drawn > REDRAW:
            drawn, points = time.monotonic(), count
            longest = max(map(len, job.curves.values()))
            picture = _clear(chart(f"{job.title}: {job.stage}", dict(job.curves), longest))
        yield (status(job), gr.update(), picture, gr.update(), gr.update(), None)
        time.sleep(EVERY)
    yield finished(job)


def finished(job: Job | None) -> tuple[Any, ...]:
    """Return the same of a job that is over."""
    result = job.result if job else None
    if not isinstance(result, Unlearned):
        return (status(job), *(gr.update() for _ in range(4)), None)
    name = result.to_dict()["diff"]
    pictures = (result.gallery, _clear(result.chart), _clear(result.neurons))
    return (status(job), *pictures, result.report, name)


def _clear(image: Image.Image) -> Image.Image:
    """Leave room above for the label that gradio lays over a picture's corner."""
    return stacked([Image.new("RGB", (image.width, image.width // 12), PAPER), image])


def stop_all() -> str:
    """Ask what runs to stop."""
    JOBS.stop_all()
    return status(JOBS.latest())
