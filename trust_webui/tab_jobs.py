"""The tab's list of jobs: everybody's, whose each is, and a Stop for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import gradio as gr

from trust_engine.errors import SpecError, TrustError

from . import job_status
from .jobs import JOBS, Job

NONE = "<p>No job has been begun since the server was started.</p>"


def build(owner: Any, follow: Callable[[Job | None], Iterator[Any]], outputs: list[Any]) -> None:
    """Build it; owner: the page's token; follow, outputs: how a job is shown, and where."""
    with gr.Accordion("Jobs: of this page, of others, and of programs", open=False):
        table = gr.HTML(NONE, elem_id="trust_jobs")
        chosen = gr.Dropdown([], label="Job", elem_id="trust_job")
        with gr.Row():
            look = gr.Button("Refresh", elem_id="trust_jobs_refresh")
            show = gr.Button("Show it", elem_id="trust_job_show")
            stop = gr.Button("Stop it", elem_id="trust_job_stop")
    quiet = {"show_progress": "hidden", **job_status.unlimited()}
    look.click(_listed, [owner], [table, chosen], **quiet)

    def shown(name: str | None) -> Iterator[Any]:
        try:
            job = _named(name)
        except TrustError as error:
            yield (job_status.problem(error), *(gr.update() for _ in outputs[1:]))
            return
        yield from follow(job)

    show.click(shown, [chosen], outputs, **job_status.calm())
    stop.click(_stop, [owner, chosen], [table, chosen])


def _listed(owner: str, said: str = "") -> tuple[str, Any]:
    jobs = JOBS.all()[::-1]
    table = "".join(f"<p>{escape(job_status.line(job, owner))}</p>" for job in jobs) or NONE
    choices = [f"{job.title} [{job.id}]" for job in jobs]
    return said + table, gr.update(choices=choices, value=choices[0] if choices else None)


def _named(name: str | None) -> Job:
    job = JOBS.get((name or "").rpartition("[")[2].rstrip("]"))
    if job is None:
        raise SpecError("choose a job first; Refresh lists them")
    return job


def _stop(owner: str, name: str | None) -> tuple[str, Any]:
    try:
        job = _named(name)
    except TrustError as error:
        return _listed(owner, job_status.problem(error))
    job.stop()
    return _listed(owner)
