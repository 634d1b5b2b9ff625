"""The store of runs: bounded, cleared, never in the way, and nobody else's files touched."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from toys.tiny import tiny_model, tiny_spec
from trust_engine.cli.main import main
from trust_engine.errors import OutputError, SpecError
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.run_state import RunState
from trust_engine.unlearn.run_store import RunStore, user_folder, user_store

KEYS = tuple(letter * 32 for letter in "abcd")


@pytest.fixture(scope="module")
def state() -> RunState:
    """Have the state of a run that has just begun to record."""
    run = Unlearning(tiny_model(), tiny_spec())
    next(report for report in run if report.stage == "recording")
    return run.state


def kept(folder: Path) -> list[str]:
    """List whose states are kept, by the first letter of their keys."""
    return sorted(path.name[0] for path in folder.iterdir() if path.suffix == ".state")


def test_what_was_used_longest_ago_makes_room(state: RunState, tmp_path: Path) -> None:
    store = RunStore(tmp_path, int(3.5 * state.size))
    for age, key in enumerate(KEYS[:3]):
        os.utime(store.keep(key, state), (100 - age,) * 2)  # the later ones look older
    size = (tmp_path / f"{KEYS[0]}.state").stat().st_size
    store = replace(store, limit=state.size + int(2.5 * size))
    (tmp_path / "mine.txt").write_bytes(bytes(10**6))
    assert store.find(KEYS[2]) is not None, "looking it up is using it"
    store.keep(KEYS[3], state)
    assert kept(tmp_path) == ["a", "c", "d"]
    with store.lock(KEYS[0]):  # it is at work: the next oldest has to go
        os.utime(tmp_path / f"{KEYS[0]}.state", (1, 1))
        os.utime(tmp_path / f"{KEYS[3]}.state", (2, 2))
        store.keep(KEYS[1], state)
    assert kept(tmp_path) == ["a", "b", "c"]
    assert (tmp_path / "mine.txt").exists()


def test_what_does_not_fit_is_said(state: RunState, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"does not fit into a run store of 0\.0 GB"):
        RunStore(tmp_path, 10).keep(KEYS[0], state)
    assert os.listdir(tmp_path) == []


def test_a_damaged_run_is_none_and_goes(state: RunState, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    path = store.keep(KEYS[0], state)
    path.write_bytes(path.read_bytes()[:-1])
    assert store.find(KEYS[0]) is None
    assert os.listdir(tmp_path) == []
    assert store.find(KEYS[1]) is None


def test_clearing_leaves_runs_at_work_and_what_is_not_ours(state: RunState, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    for key in KEYS[:2]:
        store.keep(key, state)
    for name in ("mine.state", "unsaved", f"{KEYS[0]}.txt"):
        (tmp_path / name).write_bytes(b"")
    with store.lock(KEYS[0]):
        assert store.clear().stopped == 1
    assert sorted(os.listdir(tmp_path)) == sorted(
        [f"{KEYS[0]}.state", "mine.state", "unsaved", f"{KEYS[0]}.txt"]
    )
    assert str(store.clear()).startswith("0 finished and 1 unfinished runs")


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for off in ("off", "OFF ", "0", "no"):
        monkeypatch.setenv("TRUST_RUNS", off)
        assert user_store() is None and user_store(tmp_path) is None
    monkeypatch.setenv("TRUST_RUNS", str(tmp_path / "asked"))
    assert user_store(tmp_path / "host") == RunStore(tmp_path / "asked")
    monkeypatch.delenv("TRUST_RUNS")
    assert user_store(tmp_path / "host") == RunStore(tmp_path / "host")
    monkeypatch.setenv("TRUST_RUNS_GB", "2.5")
    assert user_store(tmp_path) == RunStore(tmp_path, 2_500_000_000)
    monkeypatch.setenv("TRUST_RUNS_GB", "0")
    assert user_store(tmp_path) is None
    for odd in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("TRUST_RUNS_GB", odd)
        with pytest.raises(SpecError, match="give a number of gigabytes"):
            user_store(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="where Linux keeps caches")
def test_the_users_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRUST_RUNS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_folder() == tmp_path / "trust-unlearn" / "runs"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert user_folder() == tmp_path / "me" / ".cache" / "trust-unlearn" / "runs"

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    assert user_folder() is None


def test_the_command_shows_and_clears(
    state: RunState,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRUST_RUNS", str(tmp_path))
    RunStore(tmp_path).keep(KEYS[0], state)
    assert main(["runs"]) == 0
    assert f"{tmp_path}: kept 0 finished and 1 unfinished runs" in capsys.readouterr().out
    assert main(["runs", "--clear"]) == 0
    assert f"{tmp_path}: removed 0 finished and 1 unfinished" in capsys.readouterr().out
    assert os.listdir(tmp_path) == []
    monkeypatch.setenv("TRUST_RUNS", "off")
    assert main(["runs"]) == 0
    assert "runs are not kept: TRUST_RUNS is off" in capsys.readouterr().out
