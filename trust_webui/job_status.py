"""What the tab shows of a job: status, bar and pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from html import escape
from typing import Any

import gradio as gr
from PIL import Image

from trust_engine.errors import TrustError
from trust_engine.frontend.charts import chart, stacked
from trust_engine.frontend.pictures import PAPER
from trust_engine.frontend.prompt_lists import PromptLists
from trust_engine.frontend.wording import spelled

from . import folders
from .audit_job import Audited
from .jobs import ESTIMATE, JOBS, PROGRAM, PROMPTS, Job
from .one_line import one_line
from .unlearn_job import Unlearned

EVERY = 1.0  # seconds between two looks at a job; each costs the browser a new layout
REDRAW = 2.0  # seconds between two charts
KINDS = {"unlearn": "Unlearning", "audit": "Audit of", ESTIMATE: "Timing for",
         PROMPTS: "Prompts for"}  # fmt: skip
NOTHING: tuple[Any, ...] = ([], None, None, "")  # gallery, chart, neurons, report of no result
COLOURS = {"failed": "#b91c1c", "stopped": "#b45309", "done": "#15803d"}


def status(job: Job | None) -> str:
    """Lay out a job's status: what it is, how far, what it says."""
    if job is None:
        return "<p>Nothing has been started yet.</p>"
    left = "" if job.left is None else f", about {spelled(job.left)} left"
    state = "stopping" if job.stopping else job.state
    head = f"{KINDS.get(job.kind, escape(job.kind))} <b>{escape(job.title)}</b>: {escape(state)}"
    if job.state == "running":
        head += f", {escape(job.stage)} ({job.done} of {job.total}{left})"
    elif job.state == "queued":
        head += f", {_waiting(job)}"
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


def _waiting(job: Job) -> str:
    count = JOBS.before(job)
    if not count:
        return escape(job.stage)
    return f"after {count} other job{'s' if count > 1 else ''}"


def line(job: Job, owner: str) -> str:
    """Tell of a job in a line: what, how far, whose, since when."""
    whose = "a program's" if job.owner == PROGRAM else "another page's"
    whose = "this page's" if owner and job.owner == owner else whose
    state = "stopping" if job.stopping else job.state
    far = f" {100 * job.progress:.0f} %" if job.state == "running" else ""
    begun = datetime.fromtimestamp(job.created).strftime("%H:%M:%S")
    return f"{KINDS.get(job.kind, job.kind)} {job.title}: {state}{far} ({whose}, {begun})"


def problem(error: Exception) -> str:
    """Lay out what the user has to mend."""
    text = escape(one_line(error))
    return f'<p id="trust_problem" style="color:{COLOURS["failed"]}">{text}</p>'


def followed(job: Job | None) -> Iterator[tuple[Any, ...]]:
    """Yield (status, gallery, chart, neurons, report, name of the diff) until a job is over.

    What an earlier job has left there is taken away first: it says nothing of this one.
    """
    drawn, points, rest = 0.0, 0, NOTHING
    while job is not None and not job.over:
        gallery, picture, neurons, report = rest
        count = sum(map(len, job.curves.values()))
        if count != points and time.monotonic() - drawn > REDRAW:
            drawn, points = time.monotonic(), count
            longest = max(map(len, job.curves.values()))
            picture = _clear(chart(f"{job.title}: {job.stage}", dict(job.curves), longest))
            yield _handed(job, (gallery, picture, neurons), report, None)
        else:
            yield (status(job), gallery, picture, neurons, report, None)
        rest = tuple(gr.update() for _ in NOTHING)
        time.sleep(EVERY)
    yield finished(job)


def finished(job: Job | None) -> tuple[Any, ...]:
    """Return the same of a job that is over; nothing stands beside an error."""
    result = job.result if job else None
    if isinstance(result, Audited):
        report = f"{result.verdict}\nPage: {result.page}"
        return (status(job), *NOTHING[:3], report, None)
    if isinstance(result, PromptLists):
        return (status(job), *NOTHING[:3], str(result), None)
    if not isinstance(result, Unlearned):
        return (status(job), *NOTHING, None)
    name = result.to_dict()["diff"]
    pictures = (result.gallery, _clear(result.chart), _clear(result.neurons))
    return _handed(job, pictures, result.report, name)


def _handed(
    job: Job | None, pictures: tuple[Any, ...], report: Any, name: str | None
) -> tuple[Any, ...]:
    """Return what is shown; without its pictures where the host cannot pass any to its page."""
    try:
        folders.passing_ready()
    except TrustError as error:
        return (status(job) + problem(error), *NOTHING[:3], report, name)
    return (status(job), *pictures, report, name)


def _clear(image: Image.Image | None) -> Image.Image | None:
    """Leave room above for the label that gradio lays over a picture's corner."""
    if image is None:
        return None
    return stacked([Image.new("RGB", (image.width, image.width // 12), PAPER), image])


def stopped(owner: str, *kinds: str) -> str:
    """Stop what a page has begun of these kinds, and nobody else's; returns the status."""
    mine = JOBS.stop(owner, *kinds)
    if not mine:
        return ("<p>This page has begun nothing that could be stopped. What other pages and "
                "programs have begun is listed under <b>Jobs</b>.</p>")  # fmt: skip
    return status(mine[-1])


def unlimited() -> dict[str, Any]:
    """Let an event be worked on for several pages at once: gradio 4 takes one after another."""
    return {"concurrency_limit": None} if _gradio() >= 4 else {}


def from_the_top() -> dict[str, Any]:
    """Let a box show the beginning of a long text: gradio 4 would scroll to its end."""
    return {"autoscroll": False} if _gradio() >= 4 else {}


def _gradio() -> int:
    return int(str(getattr(gr, "__version__", "3")).partition(".")[0])


def calm() -> dict[str, Any]:
    """Let an event show a job while it works: the status tells how far, not frames that pulse."""
    return {"show_progress": "minimal", **unlimited()}  # "hidden" would hide an error, too
