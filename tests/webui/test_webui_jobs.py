"""Jobs: whose each is, a list, a Stop that stops nobody else's, and one that is soon obeyed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.webui import MADE, App, Component, installed
from fakes.webui_a1111 import FakeA1111
from trust_engine.spec import ConceptSpec, UnlearnSpec

SOON = 2.0  # seconds within which a Stop is obeyed


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Be in a pretended A1111 with its API on and the tab built."""
    made: Any = FakeA1111()
    with installed(tmp_path, made.modules) as shared:
        shared.cmd_opts.api = True
        made.shared, made.folder, made.app = shared, tmp_path / "models" / "trust_diffs", App()
        MADE.clear()
        from trust_webui import api, job_status, tab

        monkeypatch.setattr(job_status, "EVERY", 0.02)
        tab.build()
        api.add(None, made.app)
        yield made


def events(name: str) -> tuple[Callable[..., Any], list[Any], list[Any]]:
    """Return what a button does first."""
    (found,) = [c for c in MADE if c.settings.get("elem_id") == name]
    return found.listeners[0]


def click(name: str, owner: str = "", **values: Any) -> dict[str, Any]:
    """Press a button as a page of this token; returns the first answer, by elem_id."""
    call, inputs, outputs = events(name)
    given = [owner if _is_owner(c) else values.get(c.settings.get("elem_id"), c.value)
             for c in inputs]  # fmt: skip
    answer = call(*given)
    if not isinstance(answer, str | tuple):
        answer = next(iter(answer))
    listed = answer if isinstance(answer, tuple) else (answer,)
    return {str(c.settings.get("elem_id")): a for c, a in zip(outputs, listed, strict=True)}


def _is_owner(component: Component) -> bool:
    return component.settings == {"value": ""}


def until(condition: Callable[[], Any], patience: float = 20.0) -> Any:
    """Wait for something to become true, and return it."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it does not come about")


class Patient:
    """Work that goes on until it is stopped; counts who is at it."""

    def __init__(self) -> None:
        self.begun, self.stopped = threading.Event(), threading.Event()

    def __call__(self, job: Any) -> None:
        from trust_webui.jobs import Stopped

        self.begun.set()
        try:
            while True:
                job.tick(1, 2, "working")
                time.sleep(0.01)
        except Stopped:
            self.stopped.set()
            raise


def test_a_stop_touches_only_the_pages_own_jobs(host: Any) -> None:
    from trust_webui.jobs import JOBS

    work = Patient()
    mine = JOBS.start("unlearn", "gun", work, "page-a")
    until(work.begun.is_set)
    theirs = JOBS.start("unlearn", "cat", lambda job: "never", "page-b")
    audit = JOBS.start("audit", "gun", lambda job: "never", "page-b")
    answer = click("trust_stop", owner="page-b")["trust_status"]
    assert theirs.state == "stopped" and "trust_state_stopped" in answer
    assert audit.state == "queued" and mine.state == "running" and not mine.stopping
    assert "nothing that could be stopped" in click("trust_stop", owner="page-b")["trust_status"]
    assert "nothing that could be stopped" in click("trust_stop")["trust_status"]
    listing = JOBS.start("prompts", "dog", lambda job: "never", "page-b")
    assert "Prompts for <b>dog" in click("trust_stop", owner="page-b")["trust_status"]
    assert listing.state == "stopped" and audit.state == "queued"
    click("trust_audit_stop", owner="page-b")
    assert audit.state == "stopped" and mine.state == "running"
    click("trust_stop", owner="page-a")
    assert until(lambda: mine.over) and mine.state == "stopped" and work.stopped.is_set()


def test_a_queued_job_is_listed_and_leaves_at_once(host: Any) -> None:
    from trust_webui.jobs import JOBS

    work = Patient()
    first = JOBS.start("unlearn", "gun", work, "page-a")
    until(work.begun.is_set)
    seen = click("trust_unlearn", owner="page-b", trust_words="cat")["trust_status"]
    assert "queued, after 1 other job" in seen, "never: nothing has been started"
    (one, two) = host.app.call("GET", "/jobs")
    assert (one["state"], two["state"], two["title"]) == ("running", "queued", "cat")
    began = time.monotonic()
    told = host.app.call("POST", "/jobs/{identity}/cancel", identity=two["id"])
    assert told["state"] == "stopped" and time.monotonic() - began < 0.5, "not when it is its turn"
    assert first.state == "running"
    first.stop()
    until(lambda: first.over)
    time.sleep(0.1)
    assert JOBS.get(two["id"]).state == "stopped" and JOBS.get(two["id"]).started == 0


def test_the_page_lists_everybodys_jobs_and_stops_the_one_chosen(host: Any) -> None:
    from trust_webui.jobs import JOBS, PROGRAM

    work = Patient()
    first = JOBS.start("unlearn", "<b>gun", work, "page-a")
    until(work.begun.is_set)
    program = JOBS.start("audit", "x.safetensors", lambda job: None, PROGRAM)
    table, chosen = click("trust_jobs_refresh", owner="page-a").values()
    assert "this page&#x27;s" in table and "a program&#x27;s" in table and "<b>gun" not in table
    assert "another page&#x27;s" in click("trust_jobs_refresh", owner="page-b")["trust_jobs"]
    assert [program.id in chosen["choices"][0], first.id in chosen["choices"][1]] == [True, True]
    table, _ = click("trust_job_stop", owner="page-b", trust_job=chosen["choices"][0]).values()
    assert program.state == "stopped" and first.state == "running" and "stopped" in table
    shown = click("trust_job_show", trust_job=chosen["choices"][1])["trust_status"]
    assert "working" in shown
    assert "choose a job" in click("trust_job_stop", trust_job=None)["trust_jobs"]
    first.stop()
    until(lambda: first.over)


def test_a_click_gives_the_page_a_token_of_its_own(host: Any) -> None:
    from modules import call_queue

    from trust_webui.jobs import JOBS

    with call_queue.queue_lock:  # a generation is under way
        for words in ("gun", "cat"):
            call, inputs, _ = events("trust_unlearn")
            given = [words if c.settings.get("elem_id") == "trust_words" else c.value
                     for c in inputs]  # fmt: skip
            owner = next(iter(call(*given)))[0]
            assert owner and JOBS.latest("unlearn", owner).title == words
        owners = {job.owner for job in JOBS.all()}
        assert len(owners) == 2
        JOBS.stop_all()
    assert all(job.state == "stopped" for job in JOBS.all())


@pytest.mark.parametrize("kind", ["unlearn", "audit"])
def test_stop_while_prompts_are_read(host: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text encoder on a CPU takes its time for each of hundreds of prompts."""
    from trust_webui.jobs import JOBS
    from trust_webui.unlearn_job import Order, unlearn

    slow, read = host.model.get_learned_conditioning, []

    def learned(prompts: Any) -> Any:
        time.sleep(0.2)
        read.append(prompts)
        return slow(prompts)

    monkeypatch.setattr(host.model, "get_learned_conditioning", learned)
    spec = UnlearnSpec((ConceptSpec(("gun",)),))
    if kind == "unlearn":
        job = JOBS.start("unlearn", "gun", unlearn(Order(spec, pictures=0)), "page")
    else:
        job = JOBS.start("audit", "gun", _audit(host), "page")
    until(lambda: len(read) > 1)
    began = time.monotonic()
    job.stop()
    until(lambda: job.over, SOON + 5)
    assert time.monotonic() - began < SOON and job.state == "stopped"


def _audit(host: Any) -> Any:
    from toys.tiny import some_diff
    from trust_engine.diff import WeightDiff, save_diff
    from trust_webui.audit_job import Question, audit

    diff = some_diff(host.demo.denoiser)
    save_diff(WeightDiff(diff.offsets, {"family": "demo"}), host.folder / "a.safetensors")
    return audit(Question("a.safetensors", ConceptSpec(("gun",)), "demo", images=1))


def test_a_refusal_is_not_written_over_by_what_runs(host: Any) -> None:
    """The status of a page that follows its own job is written anew twice a second."""
    from trust_webui.jobs import JOBS

    assert click("trust_unlearn", owner="page-a")["trust_refusal"] == ""
    work = Patient()
    job = JOBS.start("unlearn", "gun", work, "page-a")
    until(work.begun.is_set)
    for button in ("trust_unlearn", "trust_prompts"):
        assert "what to forget" in click(button, owner="page-a")["trust_refusal"]
        assert click(button, owner="page-b")["trust_refusal"] == ""
    call, inputs, _ = events("trust_unlearn")
    given = ["page-a" if _is_owner(c) else c.value for c in inputs]
    given[[c.settings.get("elem_id") for c in inputs].index("trust_words")] = "cat"
    answers = call(*given)
    assert next(answers)[1] == "" and next(answers)[1] != "", "cleared once by the next click"
    JOBS.stop_all()
    until(lambda: job.over)


def test_a_long_message_does_not_flood_the_page(host: Any) -> None:
    from trust_engine.errors import SpecError
    from trust_webui import job_status
    from trust_webui.jobs import JOBS, Job

    word = "x" * 6000

    def fail(_: Any) -> None:
        raise SpecError(f"{word}\n\x1b[31m is no concept; take another")

    jobs = [JOBS.start("unlearn", word, fail), JOBS.start("unlearn", word, lambda _: 1 / 0)]
    for job in jobs:
        until(lambda job=job: job.over)
        assert job.state == "failed" and len(job_status.status(job)) < 1200
        assert "\n" not in job.message and "\x1b" not in job.message
    assert jobs[0].message.endswith("take another") and len(jobs[0].message) <= 400
    assert (
        len(job_status.problem(SpecError(word))) < 500 and len(job_status.line(jobs[0], "")) < 200
    )
    answer = click("trust_unlearn", trust_words=word, trust_kind="heroic")["trust_status"]
    assert "trust_problem" in answer and len(answer) < 500
    assert len(Job("unlearn", word).to_dict()["title"]) < 100
