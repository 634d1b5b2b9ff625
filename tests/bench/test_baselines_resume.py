"""The benchmark resumes cell by cell, and within a cell attack by attack."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import bench.rivals as rivals
from bench.baselines.catalogue import METHODS
from toys.task import task_of
from trust_engine.audit.levels import Budgets
from trust_engine.audit.metrics.intervals import Rate

SIZE = rivals.Size(12, 0, ("relearning", "p4d"), ("gun",), 1)
RATE = Rate(1, 4).to_dict()


class Log:
    """What was done, in order; an attack named `breaks` is interrupted; what an edit makes."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.breaks = ""
        self.makes = 1.0


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    """Replace what takes long by notes of it; files, order and cells are the real ones."""
    log = Log()

    def edit(method: str, _name: str, _seed: int, out: Path) -> dict[str, Any]:
        log.done.append(f"edit {method}")
        weights = {"conv_in.bias": log.makes * torch.ones(32)}
        save_file(weights, str(out))
        made = rivals.digest(weights)
        return {"seconds": 1.0, "passes": 2, "changed": 0.1, "bytes": 3, "made": made}

    def measure(model: Any, *_: object) -> dict[str, Any]:
        log.done.append("measure")
        assert ("conv_in.bias" in getattr(model.denoiser, "overrides", {})) == patched[0]
        return {"target": RATE}

    def attack(_self: object, _studio: object, name: str) -> dict[str, Any]:
        if name == log.breaks:
            raise KeyboardInterrupt
        log.done.append(name)
        return {"asr": RATE, "stance": "adaptive"}

    patched = [True]
    log.__dict__["patched"] = patched
    monkeypatch.setattr(rivals, "STORE", tmp_path)
    monkeypatch.setattr(rivals, "WEIGHTS", tmp_path)
    monkeypatch.setattr(rivals, "edit_apart", edit)
    monkeypatch.setattr(rivals, "measure", measure)
    monkeypatch.setattr(rivals.Bench, "_attack", attack)
    return log


def bench(size: rivals.Size = SIZE) -> rivals.Bench:
    return rivals.Bench(task_of().model, "gun", 0, size)


def test_what_is_done_is_not_done_again(log: Log, tmp_path: Path) -> None:
    bench().run("uce")
    assert log.done == ["edit uce", "measure", "relearning", "p4d"]
    cell = json.loads((tmp_path / "rivals" / "gun" / "0" / "uce.json").read_text())
    assert (cell["images"], cell["seed"], set(cell["attacks"])) == (12, 0, {"relearning", "p4d"})
    assert not (tmp_path / "rivals" / "gun" / "0" / "uce.safetensors").exists()
    bench().run("uce")
    assert len(log.done) == 4
    bench(replace(SIZE, attacks=("ring_a_bell",), images=6)).run("uce")
    assert log.done[4:] == ["edit uce", "ring_a_bell"]  # 12 pictures will do for 6


def test_an_interrupted_cell_goes_on_where_it_stopped(log: Log) -> None:
    log.breaks = "p4d"
    with pytest.raises(KeyboardInterrupt):
        bench().run("uce")
    log.breaks = ""
    bench().run("uce")
    assert log.done == ["edit uce", "measure", "relearning", "p4d"]


def test_other_settings_or_another_model_begin_anew(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench().run("uce")
    other = METHODS["uce"].with_changes({"ridge": 7.0})
    monkeypatch.setitem(METHODS, "uce", other)
    bench().run("uce")
    assert log.done.count("edit uce") == 2
    monkeypatch.setattr(rivals, "fingerprint", lambda _: "another")
    bench().run("uce")
    assert log.done.count("edit uce") == 3


def test_another_engine_that_makes_the_same_keeps_what_was_measured(
    log: Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "rivals" / "gun" / "0"
    for mark, makes, done in (
        ("one", 1.0, ["edit trust", "measure", "relearning", "p4d"]),
        ("one", 1.0, []),
        ("two", 1.0, ["edit trust"]),  # the same weights
        ("two", 1.0, []),
        ("three", 2.0, ["edit trust", "measure", "relearning", "p4d"]),
    ):
        log.done.clear()
        log.makes = makes
        monkeypatch.setattr(rivals, "engine_mark", lambda *_, mark=mark: mark)
        bench().run("trust")
        assert log.done == done
        cell = json.loads((folder / "trust.json").read_text())
        assert cell["engine"] == mark and set(cell["attacks"]) == {"relearning", "p4d"}
        assert not (folder / "trust.safetensors").exists()


def test_what_suits_another_kind_of_concept_leaves_a_cell(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench().run("uce")
    for kind, edits in (("style", 1), ("single", 2)):  # gun is a single one
        monkeypatch.setitem(METHODS, "uce", replace(METHODS["uce"], suited={kind: {"ridge": 7.0}}))
        bench().run("uce")
        assert log.done.count("edit uce") == edits


def test_the_untouched_model_is_measured_as_it_is(log: Log) -> None:
    log.__dict__["patched"][0] = False
    bench().run(rivals.UNTOUCHED)
    assert log.done == ["measure", "relearning", "p4d"]


def test_the_untouched_model_is_attacked_when_asked_for(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "load_model", lambda *_: task_of().model)
    monkeypatch.setattr(rivals, "FULL", SIZE)
    monkeypatch.setattr(rivals, "tables", lambda *_: "")
    monkeypatch.setattr(rivals, "pareto", lambda *_: "")

    def measure(*_: object) -> dict[str, Any]:
        log.done.append("measure")
        return {"target": RATE}

    monkeypatch.setattr(rivals, "measure", measure)
    asked = ["rivals", "--concepts", "gun", "--seeds", "1", "--methods"]
    monkeypatch.setattr("sys.argv", [*asked, "uce"])
    rivals.main()
    assert log.done == ["measure", "edit uce", "measure", "relearning", "p4d"]
    log.done.clear()
    monkeypatch.setattr("sys.argv", [*asked, rivals.UNTOUCHED])
    rivals.main()
    assert log.done == ["relearning", "p4d"]


@pytest.mark.parametrize("attacks", [(), ("p4d",)])
def test_some_attacks_can_be_asked_for_or_none(
    attacks: tuple[str, ...], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "load_model", lambda *_: task_of().model)
    monkeypatch.setattr(rivals, "FULL", SIZE)
    monkeypatch.setattr(rivals, "METHODS", {})  # the untouched model alone
    log.__dict__["patched"][0] = False
    asked = ["rivals", "--concepts", "gun", "--seeds", "1", "--attacks", *attacks]
    monkeypatch.setattr("sys.argv", asked)
    rivals.main()
    assert log.done == ["measure", *attacks]


def test_relearning_can_be_asked_for_in_other_numbers_of_steps() -> None:
    for name, steps in (("relearning_lora_50", 50), ("relearning_5", 5), ("relearning", 20)):
        attack = rivals.attack_named(name, Budgets())
        assert (attack.name, attack.budget["adam_steps"]) == (name.removesuffix(f"_{steps}"), steps)
