"""Processes that end in the middle: by kill, signals, or each other's way; nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine.unlearn.test_unlearn import saved

from toys.tiny import tiny_model, tiny_spec
from trust_engine.diff import load_diff
from trust_engine.unlearn.keeping import Keeping
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.run_store import RunStore
from trust_engine.unlearn.state import load_state

ROOT = Path(__file__).resolve().parents[3]
SPEC = tiny_spec(steps=3)
posix = pytest.mark.skipif(sys.platform == "win32", reason="fork and signals of POSIX")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """Return what an undisturbed run gives, and the seconds that it takes."""
    run, began = Unlearning(tiny_model(), SPEC), time.monotonic()
    list(run)
    took = time.monotonic() - began
    return saved(run.diff, tmp_path_factory.mktemp("whole")), took


@posix
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_random_moments(tmp_path: Path, whole: tuple[str, float]) -> None:
    """Saving after each step, so that some of the kills come in the middle of writing."""
    store, chance, model = RunStore(tmp_path / "runs"), random.Random(5), tiny_model()
    for _ in range(10):
        child = os.fork()
        if child == 0:
            try:
                with Keeping(Unlearning(model, SPEC), store, every=0.0) as kept:
                    kept._pause = 0.0
                    for _ in kept:
                        kept._pause = 0.0
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0.0, 0.6 * whole[1]))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    run = Unlearning(tiny_model(), SPEC)
    with Keeping(run, store) as kept:
        for _ in kept:
            pass
    assert kept.said, "the killed ones left something to go on from"
    assert saved(run.diff, tmp_path) == whole[0]
    assert sorted(path.suffix for path in store.folder.iterdir()) == [".finished"]


RUN = """
import sys, time, types
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import torch
import trust_engine.models.load as load
from toys.tiny import tiny_model
lent = tiny_model()
model = load.LoadedModel(
    lent.denoiser, lent.encoder, torch.nn.Identity(), (8, 8), lent.vocabulary, ()
)
load.load_model = lambda *_: model
from trust_engine.unlearn.trainer import Forgetting
step = Forgetting.step
def slow(self):
    if not Path("going").exists():
        Path("going").write_text("")
    time.sleep({pause})
    return step(self)
Forgetting.step = slow
from trust_engine.cli.main import main
raise SystemExit(main(sys.argv[1:]))
"""
UNLEARN = ["unlearn", "--model", "m", "--concept", "gun", "--steps", "4", "--out", "out.diff"]


def started(folder: Path, *more: str, pause: float = 0.1) -> subprocess.Popen[str]:
    """Start the command on the tiny model, and wait until it trains."""
    code = RUN.format(root=str(ROOT), tests=str(ROOT / "tests"), pause=pause)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *UNLEARN, *more], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "TRUST_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    end = time.monotonic() + 120
    while not (folder / "going").exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)
    (folder / "going").unlink()
    return process


@posix
@pytest.mark.parametrize(
    ("signals", "code"),
    [([signal.SIGINT], 130), ([signal.SIGINT] * 5, 130), ([signal.SIGTERM], 143)],
    ids=["Ctrl-C", "Ctrl-C again and again", "SIGTERM"],
)
def test_a_signal_ends_a_command_with_its_state_kept(
    signals: list[signal.Signals], code: int, tmp_path: Path
) -> None:
    """It says where, and the same command goes on to the bytes of a run that was let alone."""
    process = started(tmp_path, "--state", "st", pause=0.3)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.02)
    _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    assert "what was done is kept in st" in error and "Traceback" not in error
    assert load_state(tmp_path / "st").spec and not (tmp_path / "out.diff").exists()
    again = started(tmp_path, "--state", "st", pause=0.0)
    _, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    assert "going on with a run that was stopped" in error
    made = (tmp_path / "out.diff").read_bytes()
    assert load_diff(tmp_path / "out.diff").changed
    assert not (tmp_path / "st").exists(), "the diff is safe"
    fresh = started(tmp_path, "--no-runs", pause=0.0)
    assert fresh.communicate(timeout=120) and fresh.returncode == 0
    assert (tmp_path / "out.diff").read_bytes() == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.diff", "runs"]


@posix
def test_two_runs_with_one_state_do_not_take_it_from_each_other(tmp_path: Path) -> None:
    first = started(tmp_path, "--state", "st", pause=0.5)
    code = RUN.format(root=str(ROOT), tests=str(ROOT / "tests"), pause=0.0)
    second = subprocess.run(
        [sys.executable, "-c", code, *UNLEARN, "--state", "st", "--seed", "1", "--out", "other"],
        cwd=tmp_path, text=True, capture_output=True, timeout=120,
        env={**os.environ, "TRUST_RUNS": "off"},
    )  # fmt: skip
    assert second.returncode == 2
    assert "st: another run keeps its state there" in second.stderr
    assert not (tmp_path / "other").exists()
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)
    assert load_state(tmp_path / "st").spec
