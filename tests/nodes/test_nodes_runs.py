"""Runs in ComfyUI outlive an interrupt, a restart and a full cache; its switch and its button."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.comfy import Host, InterruptProcessingException, Patcher, fake_model
from fakes.comfy_pack import Part, content, frozen, quick, unlearn


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep runs in a folder of this test."""
    monkeypatch.setenv("TRUST_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def kinds(folder: Path) -> list[str]:
    """List the kinds of files that are kept."""
    return sorted(path.suffix for path in folder.glob("*"))


@pytest.fixture
def asked(part: Part, host: Host, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the host's progress updates that tell of what the model is asked first."""
    cls, updates = part("nodes.host_run").Unlearning, list[int]()
    ask = cls.ask

    def noted(run: Any) -> Iterator[Any]:
        for report in ask(run):
            updates.append(host.updates + 1)
            yield report

    monkeypatch.setattr(cls, "ask", noted)
    return updates


def test_a_run_interrupted_while_it_asks_begins_again(
    part: Part, host: Host, model: Patcher, folder: Path, asked: list[int]
) -> None:
    """Asking takes seconds and leaves nothing to go on from."""
    host.interrupt_at = 2
    with pytest.raises(InterruptProcessingException):
        unlearn(part, model)
    assert 2 in asked and kinds(folder) == []
    report = unlearn(part, model)[3]
    assert "Going on with" not in report and kinds(folder) == [".finished"]


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_an_interrupted_run_goes_on_when_it_is_queued_again(
    part: Part,
    host: Host,
    model: Patcher,
    folder: Path,
    asked: list[int],
    monkeypatch: pytest.MonkeyPatch,
    share: float,
) -> None:
    """share: of the reports that follow the questions."""
    monkeypatch.setenv("TRUST_RUNS", "off")
    whole, updates = content(unlearn(part, model)[1]), host.updates
    monkeypatch.setenv("TRUST_RUNS", str(folder))
    at = asked[-1] + max(2, int(share * (updates - asked[-1])))
    before, host.updates, host.interrupt_at = frozen(model), 0, at
    with pytest.raises(InterruptProcessingException):
        unlearn(part, model)
    assert kinds(folder) == [".state"]
    host.updates = 0
    _, diff, _, report = unlearn(part, model)
    assert "Going on with a run that was stopped" in report
    assert host.updates < updates
    assert content(diff) == whole
    assert kinds(folder) == [".finished"]
    assert frozen(model) == before


def test_robust_mode_interrupted_while_it_relabels_goes_on(
    part: Part, host: Host, model: Patcher, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was kept is read in the host's inference mode, and trained further."""
    stage, at = part("trust_engine.unlearn.scrubbing.picture_stage").PictureStage, list[int]()
    work = stage.__iter__

    def noted(of: Any) -> Iterator[Any]:
        for done, what in work(of):
            at.extend([host.updates + 1] if what == "relabelling" else [])
            yield done, what

    monkeypatch.setattr(stage, "__iter__", noted)
    robust = {"robust": True, "settings": quick(part, passes=16)}
    monkeypatch.setenv("TRUST_RUNS", "off")
    whole = unlearn(part, model, **robust)[1]
    monkeypatch.setenv("TRUST_RUNS", str(folder))
    host.updates, host.interrupt_at = 0, at[0]
    with pytest.raises(InterruptProcessingException):
        unlearn(part, model, **robust)
    _, diff, _, report = unlearn(part, model, **robust)
    assert "Going on with a run that was stopped" in report
    for key, offset in diff.offsets.items():
        assert torch.equal(offset.dense(), whole.offsets[key].dense())


def test_a_finished_run_is_not_trained_again(
    part: Part, host: Host, model: Patcher, folder: Path
) -> None:
    """As after a restart, or when the host's cache has let go of it."""
    first = unlearn(part, model, whole=True)
    host.updates = 0
    again = unlearn(part, fake_model(host), whole=True)
    assert host.updates == 1
    assert "finished before with the same inputs" in again["ui"]["text"][0]
    assert content(again["result"][1]) == content(first["result"][1])
    assert again["ui"]["trust_run"] == first["ui"]["trust_run"]
    assert torch.equal(again["result"][2], first["result"][2]), "the chart is the same, too"


def test_another_model_or_clip_is_another_run(
    part: Part, host: Host, model: Patcher, folder: Path
) -> None:
    """Whatever changes what is predicted: weights, LoRAs, wrappers of other nodes."""
    unlearn(part, model)
    shapes = part("nodes.weights").Weights(model).shapes
    key = next(k for k in shapes if ".attn2." not in k and k.endswith(".weight"))
    lora, wrapped = model.clone(), model.clone()
    lora.add_patches({f"diffusion_model.{key}": ("diff", (torch.randn(shapes[key]),))})

    def louder(apply: Any, told: dict[str, Any]) -> Any:
        return apply(told["input"], told["timestep"], **told["c"]) * 1.01

    wrapped.model_options["model_function_wrapper"] = louder
    for other in (lora, wrapped):
        assert "finished before" not in unlearn(part, other)[3]
        assert "finished before" in unlearn(part, other)[3]


def test_the_switch_and_the_button(part: Part, host: Host, model: Patcher, folder: Path) -> None:
    change = part("nodes.runs").change
    unlearn(part, model)
    told = change({})
    assert told["keep"] and told["text"].startswith("1 finished and 0 unfinished runs")
    assert change({"keep": False})["keep"] is False
    assert "finished before" not in unlearn(part, model)[3]
    assert change({"keep": True})["keep"] is True
    assert "finished before" in unlearn(part, model)[3]
    assert change({"clear": True})["text"].startswith("1 finished")
    assert change({})["text"].startswith("0 finished and 0 unfinished")
    assert change({"clear": "yes", "keep": 3})["keep"] is True


def test_where_runs_lie(part: Part, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = part("nodes.runs")
    monkeypatch.delenv("TRUST_RUNS")
    assert runs.store().folder == runs.folder()
    assert runs.folder().name == "trust_runs"
    monkeypatch.setenv("TRUST_RUNS", "off")
    assert runs.store() is None
    assert runs.change({})["keep"] is False


def test_a_folder_that_cannot_be_written_is_said_once(
    part: Part, host: Host, model: Patcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TRUST_RUNS", str(tmp_path / "file" / "runs"))
    report = unlearn(part, model)[3]
    assert report.count("Runs are not kept") == 1
    assert report.startswith("gun: ")
