"""What is printed survives any encoding, a closed pipe and a missing package."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trust_engine import __main__
from trust_engine.cli.console import console
from trust_engine.cli.main import main
from trust_engine.diff import SparseOffset, WeightDiff, save_diff


@pytest.fixture
def diff(tmp_path: Path) -> str:
    import torch

    spec = '{"concept": {"words": ["\\u732b \\ud83d\\udd2b"], "kind": "single"}}'
    offsets = {"out.0.weight": SparseOffset.of(torch.ones(2))}
    save_diff(WeightDiff(offsets, {"spec": spec}), tmp_path / "猫.safetensors")
    return str(tmp_path / "猫.safetensors")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp932", "utf-16", "latin-1"])
def test_any_encoding_will_do(diff: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["diff", "info", diff]) == 0
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert "forgets" in text
    assert "猫" in text or "\\u732b" in text
    assert "\\U0001f52b" in text or "🔫" in text
    assert stream.errors == "strict"  # as it was


def broken_pipe() -> Any:
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w", encoding="utf-8")


@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_a_reader_who_leaves_stops_no_work(
    diff: str, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, where, broken_pipe())
    other = str(tmp_path / "noted.safetensors")
    assert main(["diff", "annotate", diff, "--notes", "x", "--out", other]) == 0
    assert Path(other).is_file()
    getattr(sys, where).close()  # as the interpreter does at its end: nothing is left to fail


def test_prints_go_on_after_the_reader_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", broken_pipe())
    done = []
    with console():
        for i in range(3):
            sys.stdout.write("x" * 100_000)
            sys.stdout.flush()
            done.append(i)
    assert done == [0, 1, 2]


def test_no_streams_at_all(diff: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a program without a window, or after `>&-`."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["diff", "info", diff]) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_could_not_be_printed_is_said(
    diff: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["diff", "info", diff]) == 2
    assert "did not arrive (No space left on device)" in capsys.readouterr().err


WITHOUT_TORCH = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Missing())
from trust_engine.__main__ import run
sys.exit(run())
"""


def without_torch(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *line.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("line", ["--version", "--help", "unlearn --help", "diff export --help"])
def test_help_needs_nothing(line: str, tmp_path: Path) -> None:
    done = without_torch(line, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "line",
    [
        "demo",
        "generate --model demo --prompt x --out x.png",
        "unlearn --model demo --concept gun --out x",
        "audit --model demo --concept gun --diff x",
        "diff info x",
        "diff apply x --model demo --out y",
    ],
)
def test_without_torch_each_command_says_what_to_install(line: str, tmp_path: Path) -> None:
    """As after `pip install .` without the extra, or in a Python that is not the host's."""
    done = without_torch(line, tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "torch is not installed" in done.stderr
    assert 'pip install "trust-unlearn[cli]"' in done.stderr
    assert os.listdir(tmp_path) == []


def test_so_do_they_without_diffusers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)  # importing it fails, as if it were missing
    line = ["generate", "--model", "demo", "--prompt", "x", "--out", str(tmp_path / "x.png")]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "diffusers is not installed" in said


def test_the_console_script_is_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["trust-unlearn", "--version"])
    with pytest.raises(SystemExit) as stop:
        __main__.run()
    assert stop.value.code == 0
