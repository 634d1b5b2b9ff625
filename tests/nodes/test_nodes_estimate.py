"""The time and memory that Unlearn announces, and what it learns from a run."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from fakes.comfy import Clip, Host, Patcher, Vae, fake_model
from fakes.comfy_pack import Part, concept, unlearn


def expected(part: Part, model: Patcher, drawing: int = 0, **fields: Any) -> Any:
    """Say what a run is expected to take, by what is known of the model."""
    lent = part("nodes.lending").lend(model, Clip(), 64)
    told = {"trajectory_steps": 2, "passes": 64, "xi": 1.0, "steps": 4, **fields}
    spec = part("trust_engine.spec").UnlearnSpec(concept(part), **told)
    run = part("trust_engine.unlearn.run").Unlearning(lent.model, spec)
    return part("nodes.estimate").expect(lent, run, drawing)


def test_it_is_announced_before_the_first_pass_that_counts(
    part: Part, host: Host, model: Patcher, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        report = unlearn(part, model, vae=Vae(), pictures=2)[3]
    (line,) = [told.getMessage() for told in caplog.records if "expected" in told.getMessage()]
    assert re.search(r"about \d+ s \(recording \d+ s, training \d+ s, pictures", line)
    assert "MB of recorded states" in line
    assert "It was expected to take about" in report
    memory, time = (data for _, data in host.events[:2])
    assert memory["left"] is None and time["left"] is not None and time["done"] == 0
    assert memory["needs"] == time["needs"]


def test_more_to_do_is_expected_to_take_longer(part: Part, host: Host, model: Patcher) -> None:
    base = expected(part, model)
    assert expected(part, model, steps=400).training == pytest.approx(100 * base.training)
    assert expected(part, model, passes=640).recording > base.recording > 0
    assert expected(part, model, drawing=100).seconds > base.seconds
    assert "at most" in str(expected(part, model, stop_effect=0.1)) and "most" not in str(base)


def test_a_model_is_measured_once(part: Part, host: Host, model: Patcher) -> None:
    first = expected(part, model)
    passes = host.passes
    assert passes and expected(part, model.clone()) == first and host.passes == passes
    expected(part, fake_model(host))
    assert host.passes == 2 * passes


def test_a_run_corrects_what_was_measured(part: Part, host: Host, model: Patcher) -> None:
    """As if the machine had been busy with something else when it was measured."""
    expecting = part("nodes.estimate")
    lent = part("nodes.lending").lend(model, Clip(), 64)
    slow = part("trust_engine.unlearn.estimate").Speed(1000.0, {"csr": 1000.0})
    expecting._known[model.model] = {expecting._key(lent): slow}
    before = expected(part, model, steps=20)
    part("nodes.settings").EFFORTS["twenty"] = 20 / part("nodes.settings").DEFAULTS["steps"]
    unlearn(part, model, effort="twenty")
    after = expected(part, model, steps=20)
    assert after.recording < before.recording / 100 and after.training < before.training / 100


def test_a_run_that_stopped_early_says_nothing_of_a_step(
    part: Part, host: Host, model: Patcher
) -> None:
    """What sets a layer up would count as if it belonged to its few steps."""
    expecting, report = part("nodes.estimate"), part("trust_engine.unlearn.run").StepReport
    lent = part("nodes.lending").lend(model, Clip(), 64)
    spec = part("trust_engine.spec").UnlearnSpec(concept(part), steps=100)
    before = expecting.measured(lent, spec)
    for steps, learns in ((20, False), (60, True)):
        watch = expecting.Stopwatch(lent, spec)
        watch.last = (watch.last[0] - 1000.0, 0)  # training has taken 1000 seconds
        for number in range(steps):
            watch.see(report(number, 100, "unlearning a", 0, 0, object()))
        watch.remember()
        assert (expecting.measured(lent, spec) != before) == learns


def test_what_is_left_goes_by_what_was_expected_at_first(part: Part, host: Host) -> None:
    progress = part("nodes.progress")
    bar = progress.Bar(None, 10)
    assert bar.remaining(1, 10, 60.0) == pytest.approx(60.0, abs=1.0)
    bar._first = (bar._first[0] - 2 * progress.SETTLED, 1)
    assert bar.remaining(9, 10, 60.0) == pytest.approx(2 * progress.SETTLED / 8, abs=0.1)
