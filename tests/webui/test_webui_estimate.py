"""What a run will take, told before it is started, in both pretended hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.webui import installed
from fakes.webui_a1111 import FakeA1111
from fakes.webui_forge import FakeForge
from hosts.webui_lent import small, spec


@pytest.fixture(params=[FakeA1111, FakeForge])
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Be in a pretended host."""
    made = request.param()
    with installed(tmp_path, made.modules):
        yield made


def test_expected_time_and_memory(fake: Any) -> None:
    from trust_webui.estimate import expect
    from trust_webui.jobs import Job, run

    told = []
    for steps in (40, 400):
        job = Job("estimate", "gun")
        run(job, expect(small(pictures=2, steps=steps)))
        assert (job.state, job.message) == ("done", "")
        told.append(job.result)
    assert told[1].training > 3 * told[0].training > 0
    assert "Expected:" in str(told[0]) and told[0].memory > 0


def test_an_estimate_goes_by_the_last_run(fake: Any) -> None:
    from trust_webui.estimate import estimate, expect, watched
    from trust_webui.host import current
    from trust_webui.jobs import Job, run
    from trust_webui.unlearn_job import Order

    order = small()
    timing, job = Job("expect", "gun"), Job("unlearn", "gun")
    run(timing, expect(order))
    run(job, watched(order))
    assert job.state == "done", job.message
    told = estimate(current(), order)
    assert told is not None and told.seconds == pytest.approx(job.seconds, rel=0.2)
    assert estimate(current(), Order(spec())) is None, "not timed at this size"


def test_a_finished_run_is_kept_when_its_pace_is_forgotten(
    fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trust_webui import estimate, speed
    from trust_webui.jobs import Job, run

    order = small()
    run(Job("expect", "gun"), estimate.expect(order))

    def work(job: Job) -> str:
        speed._known.clear()
        return "the diff"

    monkeypatch.setattr(estimate, "unlearn", lambda order: work)
    job = Job("unlearn", "gun")
    run(job, estimate.watched(order))
    assert (job.state, job.result) == ("done", "the diff"), job.message
