"""Runs in the web UIs outlive Stop, Interrupt and a restart; a setting and a button for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.webui import MADE
from hosts.webui_lent import HOSTS, entered, run_job, small


@pytest.fixture(params=[HOSTS[0], HOSTS[-1]])
def fake(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """Be in a pretended host that keeps runs in a folder of this test."""
    monkeypatch.setenv("TRUST_RUNS", str(tmp_path / "runs"))
    for made in entered(request.param, tmp_path):
        made.runs = tmp_path / "runs"
        yield made


def interrupted_in(stage: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start the run, and stop it at its second report of a stage that begins so."""
    from trust_webui.jobs import Job

    tick, steps = Job.tick, []

    def counting(job: Any, done: int, total: int, told: str) -> None:
        steps.append(told.startswith(stage))
        if sum(steps) == 2 and steps[-1]:
            job.stop()
        tick(job, done, total, told)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "tick", counting)
        return run_job(small())


def kinds(folder: Path) -> list[str]:
    """List the kinds of files that are kept."""
    return sorted(path.suffix for path in folder.glob("*"))


@pytest.mark.parametrize("stage", ["recording", "unlearning"])
def test_a_stopped_job_goes_on(fake: Any, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = interrupted_in(stage, monkeypatch)
    assert stopped.state == "stopped" and kinds(fake.runs) == [".state"]
    assert any("goes on from there" in line for line in stopped.said)
    job = run_job(small())
    assert (job.state, job.message) == ("done", "")
    assert any(line.startswith("Going on with a run that was stopped") for line in job.said)
    assert "Going on with" in job.result.report
    assert kinds(fake.runs) == [".finished"]
    monkeypatch.setenv("TRUST_RUNS", "off")
    whole = run_job(small())
    assert whole.result.path != job.result.path
    assert whole.result.path.read_bytes() == job.result.path.read_bytes()
    assert {k: len(v) for k, v in whole.curves.items()} == {
        k: len(v) for k, v in job.curves.items()
    }


def test_a_job_stopped_while_it_asks_begins_again(
    fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking takes seconds and leaves nothing to go on from; it says so and promises nothing."""
    stopped = interrupted_in("asking", monkeypatch)
    assert stopped.state == "stopped" and kinds(fake.runs) == []
    assert any("before there was anything to keep" in line for line in stopped.said)
    job = run_job(small())
    assert (job.state, job.message) == ("done", "")
    assert "Going on with" not in job.result.report


def test_a_finished_job_is_not_trained_again(fake: Any) -> None:
    first = run_job(small())
    again = run_job(small())
    assert any("finished before with the same inputs" in line for line in again.said)
    assert again.result.path.read_bytes() == first.result.path.read_bytes()
    assert again.curves == first.curves


def test_the_setting_and_the_button(fake: Any) -> None:
    from trust_webui import runs

    fake.shared.opts.trust_runs = False
    run_job(small())
    assert not fake.runs.exists() and runs.store() is None
    fake.shared.opts.trust_runs = True
    run_job(small())
    MADE.clear()
    runs.build()
    buttons = {c.settings.get("elem_id"): c for c in MADE}
    show, clear = (
        buttons[name].listeners[0][0] for name in ("trust_runs_show", "trust_runs_clear")
    )
    assert "1 finished and 0 unfinished runs" in show()
    assert "Removed 1 finished" in clear()
    assert "0 finished and 0 unfinished" in show()


def test_a_diff_that_cannot_be_saved_is_not_lost(
    fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trust_engine.diff import load_diff
    from trust_engine.errors import OutputError
    from trust_engine.unlearn import autosave

    real = autosave.save_diff

    def full(diff: Any, path: Path) -> None:
        if "trust_diffs" in path.parts:
            raise OutputError(f"{path}: cannot be written (No space left on device)")
        real(diff, path)

    monkeypatch.setattr(autosave, "save_diff", full)
    job = run_job(small())
    assert job.state == "failed"
    assert "No space left on device); nothing is lost: the diff is in" in job.message
    (saved,) = (fake.runs / "unsaved").iterdir()
    assert str(saved) in job.message and load_diff(saved).changed
    monkeypatch.undo()
    monkeypatch.setenv("TRUST_RUNS", str(fake.runs))
    again = run_job(small())
    assert again.state == "done" and any("finished before" in line for line in again.said)


def audited(monkeypatch: pytest.MonkeyPatch, stop_at: str = "") -> Any:
    """Audit a diff by a single step a picture; stopped, if asked, when a part of it begins."""
    import time

    from trust_engine.audit import run
    from trust_engine.models.sampler import SamplerSettings
    from trust_engine.spec import ConceptSpec
    from trust_webui.audit_job import Question, audit
    from trust_webui.jobs import JOBS, Job

    tick = Job.tick

    def watched(job: Any, done: int, total: int, told: str) -> None:
        if stop_at and told.startswith(stop_at):
            job.stop()
        tick(job, done, total, told)

    asked = Question("a.safetensors", ConceptSpec(("gun",)), "demo", images=1, resolution=64)
    with monkeypatch.context() as patch:
        patch.setattr(Job, "tick", watched)
        patch.setattr(run, "SamplerSettings", lambda: SamplerSettings(1, 1.0))
        job, end = JOBS.start("audit", "gun", audit(asked)), time.monotonic() + 300
        while not job.over:
            assert time.monotonic() < end
            time.sleep(0.01)
    return job


@pytest.mark.slow  # it draws the demo's audit twice; toys and the node prove the rest faster
@pytest.mark.parametrize("fake", HOSTS[:1], indirect=True)
def test_a_stopped_audit_goes_on(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from toys.tiny import some_diff
    from trust_engine.audit import pick_level
    from trust_engine.diff import WeightDiff, save_diff
    from trust_webui import audit_job, folders

    brief = pick_level("quick", neutral=1, pairs=1, shots=1)
    monkeypatch.setattr(audit_job, "pick_level", lambda _: brief)
    diff = some_diff(fake.demo.denoiser)
    save_diff(WeightDiff(diff.offsets, {"family": "demo"}), folders.diffs() / "a.safetensors")
    stopped = audited(monkeypatch, "retention")
    assert stopped.state == "stopped" and set(kinds(fake.runs)) == {".cell"}
    job = audited(monkeypatch)
    assert (job.state, job.message) == ("done", "")
    assert any(line.startswith("Going on with an audit that was stopped") for line in job.said)
    again = audited(monkeypatch)
    assert any("finished before with the same inputs" in line for line in again.said)
    assert again.result.figures == job.result.figures
