"""Two processes over gloo do what one does: the same diff, the same audit, written once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from trust_engine import distributed
from trust_engine.__main__ import run
from trust_engine.cli.main import main
from trust_engine.diff import load_diff
from trust_engine.distributed import LAUNCHED, SINGLE, Workers, joined
from trust_engine.errors import SpecError
from trust_engine.spec import ConceptSpec, UnlearnSpec

ROOT = Path(__file__).resolve().parents[3]
UNLEARN = ("unlearn", "--model", "demo", "--concept", "gun", "--steps", "2", "--device", "cpu",
           "--pictures", "0")  # fmt: skip
FEW_PROMPTS = ConceptSpec(
    ("gun",),
    preserve=("a cat", "a dog", "a car", "a tree", "a house", "a boat", "a bird", "a fish"),
    templates=("{}", "a picture of {}"),
)


def launched(arguments: list[str], folder: Path, size: int = 2) -> list[tuple[int, str, str]]:
    """Run a command in some processes, as torchrun and accelerate start them."""
    outside = {k: v for k, v in os.environ.items() if k not in LAUNCHED}
    shared = {**outside, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if size > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port(), "WORLD_SIZE": str(size)}
        shared |= address
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "trust_engine", *arguments],
            env={**shared, "RANK": str(rank)}, cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(running, told, strict=True)]


def forked(arguments: list[str], folder: Path) -> list[tuple[int, str, str]]:
    """Run a command in two processes that have all it imports already, where there is fork."""
    if not hasattr(os, "fork"):
        return launched(arguments, folder)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port(), "WORLD_SIZE": "2"}
    said = [[folder / f"{name}{rank}" for name in ("out", "err")] for rank in range(2)]
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.chdir(folder)
                torch.set_num_threads(1)  # threads do not outlive a fork
                os.environ |= {**shared, "RANK": str(rank)}
                sys.stdout, sys.stderr = (path.open("w") for path in said[rank])
                code = main(arguments)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    texts = [[path.read_text() for path in paths] for paths in said]
    for path in (path for paths in said for path in paths):
        path.unlink()
    return [(code, out, error) for code, (out, error) in zip(codes, texts, strict=True)]


def _port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@dataclass(frozen=True)
class Pretended(Workers):
    """One of two processes, which knows already what both bring."""

    shares: tuple[list[int], ...] = ([0, 2, 4], [1, 3])

    def gather(self, value: Any) -> Any:
        assert value == self.shares[self.rank]
        return list(self.shares)


def test_alone_nothing_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    with joined() as team:
        assert team is SINGLE
    found = {"b": 1, "a": 2}
    team.unite(found, ["a", "b"])
    assert list(found) == ["b", "a"]
    assert team.gather(3) == [3]
    assert team.interleave([1, 2, 3]) == [1, 2, 3]
    assert team.of_first("mine") == "mine"
    assert [team.mine(number) for number in range(3)] == [True] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_work_is_dealt_in_turn_and_comes_back_in_order(rank: int) -> None:
    team = Pretended(rank, 2)
    mine = [number for number in range(5) if team.mine(number)]
    assert team.interleave(mine) == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_error_of_one_process_is_everyones(tmp_path: Path) -> None:
    """It is told once, and nobody waits for the one that is gone."""
    ends = forked([*UNLEARN, "--preserve", "a gun", "--out", "d.safetensors"], tmp_path)
    assert [code for code, _, _ in ends] == [2, 2], ends
    assert [error.count("names the concept itself") for _, _, error in ends] == [1, 0]
    (tmp_path / "folder").mkdir()  # only process 0 looks at what is to be written
    ends = forked([*UNLEARN, "--out", "folder"], tmp_path)
    assert [code for code, _, _ in ends] == [2, 2], ends
    assert [error.count("is a folder") for _, _, error in ends] == [1, 0]


@pytest.mark.parametrize(
    ("way", "started"),
    [
        ({"engine": "local"}, forked),
        pytest.param({"engine": "local"}, launched, marks=pytest.mark.slow),
        pytest.param({"engine": "global"}, launched, marks=pytest.mark.slow),
        pytest.param({"robust": True}, launched, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_make_the_diff_of_one(
    way: dict[str, Any],
    started: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To the bit, as long as each computes with as many threads."""
    brief = {"trajectory_steps": 2, "passes": 40, "steps": 2}  # ten prompts, eight at once
    spec = UnlearnSpec((FEW_PROMPTS,), **way, **brief)  # type: ignore[arg-type]
    (tmp_path / "spec.json").write_text(spec.to_json())
    command = ["unlearn", "--model", "demo", "--device", "cpu", "--spec", "spec.json", "--json",
               "--pictures", "0"]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main([*command, "--out", "one.safetensors"]) == 0
    finally:
        torch.set_num_threads(threads)
    one = capsys.readouterr().out
    first, second = started([*command, "--out", "two.safetensors"], tmp_path)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert second[1:] == ("", "")
    whole, shared = json.loads(one), json.loads(first[1])
    assert {**whole, "diff": ""} == {**shared, "diff": ""}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "one.safetensors",
        "spec.json",
        "two.safetensors",
    ]
    a, b = (load_diff(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert list(a.offsets) == list(b.offsets)
    for key, offset in a.offsets.items():
        mine, other = offset.entries(), b.offsets[key].entries()
        assert torch.equal(mine.indices, other.indices)
        torch.testing.assert_close(mine.values, other.values, rtol=0, atol=0)
    assert a.provenance == b.provenance


@pytest.mark.slow
def test_two_processes_make_the_audit_of_one(tmp_path: Path) -> None:
    (made,) = launched([*UNLEARN, "--out", "d.safetensors"], tmp_path, size=1)
    assert made[0] == 0, made[2]
    audit = ["audit", "--model", "demo", "--device", "cpu", "--diff", "d.safetensors"]
    audit += ["--concept", "gun", "--steps", "2", "--images", "1", "--json"]
    (one,) = launched([*audit, "one.json"], tmp_path, size=1)
    first, second = launched([*audit, "two.json"], tmp_path)
    assert (one[0], first[0], second[0]) == (0, 0, 0), first[2] + second[2]
    assert second[1:] == ("", "")
    a, b = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    for figures in (a, b):
        figures.pop("cost")
    assert a == b


LEFT = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}


def test_a_command_that_shares_no_work_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever an old job left in the environment, and whatever its number: it prints."""
    for name, value in LEFT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["trust_engine", "diff", "info", "missing.safetensors"])
    assert run() == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "trust_engine: missing.safetensors: no such file\n")


@pytest.mark.parametrize("empty", LAUNCHED)
def test_an_empty_variable_is_as_good_as_none(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**LEFT, empty: " "}.items():
        monkeypatch.setenv(name, value)
    with joined() as team:
        assert team is SINGLE


@pytest.mark.parametrize(
    "odd", [{"RANK": "x"}, {"WORLD_SIZE": "many"}, {"RANK": "4"}, {"MASTER_PORT": "?"}]
)
def test_variables_that_make_no_sense_are_said(
    odd: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**LEFT, **odd}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SpecError, match="start all of them, or unset RANK"), joined():
        pytest.fail("it joined nobody")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_others_that_do_not_come_are_waited_for_a_while(
    rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute, shortened here; and it is said meanwhile."""
    for name, value in {**LEFT, "RANK": rank, "MASTER_PORT": _port(), "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert distributed.MEETING.total_seconds() == 60
    monkeypatch.setattr(distributed, "MEETING", timedelta(seconds=1))
    monkeypatch.setattr(distributed, "WORD_AFTER", 0.2)
    monkeypatch.setattr(distributed, "LATER", 0.2)
    said: list[str] = []
    with pytest.raises(SpecError, match=r"did not come to 127\.0\.0\.1"), joined(said.append):
        pytest.fail("it joined nobody")
    assert len(said) == 1
    assert "waiting up to a minute for 1 other processes" in said[0]
