"""An audit is kept by itself, part by part: killed, it goes on to the same figures."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from toys.audit_toy import FEW, LEVEL, TOPIC, ToyJudge, forgets_the_word, toy_model
from trust_engine.audit import Audit
from trust_engine.errors import OutputError
from trust_engine.models.load import LoadedModel
from trust_engine.unlearn.run_store import CELL, RunStore

SMALL = dataclasses.replace(LEVEL, attacks=("relearning",))


def audit(store: Any, said: list[str] | None = None, model: LoadedModel | None = None) -> Audit:
    model = model or toy_model()
    told = (lambda text: None) if said is None else said.append
    diffs = forgets_the_word(toy_model())
    return Audit(model, ToyJudge(), diffs, TOPIC, SMALL, settings=FEW, state=store, say=told)


def figures(run: Audit) -> dict[str, Any]:
    for _ in run:
        pass
    told = dict(run.report.figures)
    del told["cost"]  # its seconds are those of the machine
    return told


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """Return what an audit finds that is let alone."""
    return figures(audit(None))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked and killed")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_a_random_moment_it_goes_on_to_the_same_figures(
    tmp_path: Path, alone: dict[str, Any]
) -> None:
    store, chance = RunStore(tmp_path), random.Random()
    seed = chance.randrange(10**6)
    chance.seed(seed)
    for _ in range(3):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            with warnings.catch_warnings():
                figures(audit(store))
            os._exit(0)
        time.sleep(chance.uniform(0.0, 1.0))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    said: list[str] = []
    assert figures(audit(store, said)) == alone, f"seed {seed}"
    left = {path.suffix for path in tmp_path.iterdir()}
    assert CELL in left and store.contents.cells == len(audit(None).cells)


def test_stopped_it_says_where_it_goes_on_and_what_is_finished_is_not_drawn_again(
    tmp_path: Path, alone: dict[str, Any]
) -> None:
    store, said = RunStore(tmp_path), list[str]()
    first = audit(store, said)
    for step in first:
        if step.stage != "core":
            break
    assert said == [] and store.contents.cells == 1
    assert figures(audit(store, said)) == alone
    assert said[0].startswith("going on with an audit that was stopped at ")
    calls = 0
    model = toy_model()
    real = model.denoiser.forward

    def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(*args)

    model = dataclasses.replace(
        model, denoiser=dataclasses.replace(model.denoiser, forward=counted)
    )
    assert figures(audit(store, said, model)) == alone
    assert said[1:] == ["this audit was finished before with the same inputs: its figures are "
                        "taken over"]  # fmt: skip
    assert calls == 3, "the UNet is asked three times whether it is the same one"


class Brighter(torch.nn.Module):
    """A decoder without weights of its own, as a host's is."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3) + 0.5


def test_what_a_host_patches_or_decodes_otherwise_is_another_audit(tmp_path: Path) -> None:
    store, said = RunStore(tmp_path), list[str]()
    figures(audit(store))
    model = toy_model()
    patched = dataclasses.replace(
        model.denoiser, forward=lambda x, t, c: model.denoiser.forward(x, t, c) * 1.1
    )
    for other in (
        dataclasses.replace(model, decoder=Brighter()),
        dataclasses.replace(model, denoiser=patched),
    ):
        next(iter(audit(store, said, other)))
    assert said == []


def test_a_store_that_cannot_be_written_stops_no_audit(
    tmp_path: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    said: list[str] = []
    assert figures(audit(RunStore(blocked), said)) == alone
    (only,) = said
    assert only.startswith("the audit is not kept, for the run store cannot be used: ")
    assert blocked.read_text() == "not a folder"
    with pytest.raises(OutputError, match="cannot keep finished cells there"):
        audit(blocked)


def test_parts_of_audits_are_bounded_counted_and_cleared(tmp_path: Path) -> None:
    figures(audit(RunStore(tmp_path)))
    found = RunStore(tmp_path).contents
    assert f"{found.cells} parts of audits" in str(found) and found.size > 0
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    newest = next(tmp_path.iterdir())
    os.utime(newest)
    RunStore(tmp_path, found.size).make_room(found.size - newest.stat().st_size)
    assert list(tmp_path.iterdir()) == [newest], "what was used longest ago makes room first"
    assert RunStore(tmp_path).clear().cells == 1 and not list(tmp_path.iterdir())
