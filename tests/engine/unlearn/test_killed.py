"""Processes that end in the middle: by kill, signals, or each other's way; nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from engine.unlearn.test_unlearn import saved

from toys.tiny import tiny_model, tiny_spec
from trust_engine.cli.main import main
from trust_engine.diff import load_diff
from trust_engine.errors import OutputError
from trust_engine.models import load
from trust_engine.unlearn import autosave
from trust_engine.unlearn.autosave import Keeping
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.run_state import load_state
from trust_engine.unlearn.run_store import UNSAVED, RunStore
from trust_engine.unlearn.trainer import SelectiveTrainer

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
        time.sleep(chance.uniform(0.0, 0.9 * whole[1]))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    run = Unlearning(tiny_model(), SPEC)
    with Keeping(run, store) as kept:
        for _ in kept:
            pass
    assert kept.said, "the killed ones left something to go on from"
    assert saved(run.diff, tmp_path) == whole[0]
    assert sorted(path.suffix for path in store.folder.iterdir()) == [".finished"]


UNLEARN = ["unlearn", "--model", "m", "--spec", "spec.json", "--pictures", "0"]


class Command:
    """The command on the tiny model, in a forked process, which has all it imports already."""

    def __init__(self, folder: Path, *more: str, pause: float = 0.0, runs: str = "runs") -> None:
        self.folder, self.said = folder, folder.parent / f"said-{folder.name}-{time.monotonic_ns()}"
        self.going = self.said.with_suffix(".going")
        self.child = os.fork()
        if self.child == 0:
            code = 70
            try:
                code = self._work([*UNLEARN, *more], pause, runs)
            except SystemExit as stop:
                code = int(stop.code or 0)
            finally:
                os._exit(code)

    def _work(self, arguments: list[str], pause: float, runs: str) -> int:
        handle = os.open(self.said, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.chdir(self.folder)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        os.environ["TRUST_RUNS"] = runs
        signal.signal(signal.SIGINT, signal.default_int_handler)
        lent, step = tiny_model(), SelectiveTrainer.step
        model = load.LoadedModel(
            lent.denoiser, lent.encoder, torch.nn.Identity(), (8, 8), lent.vocabulary, ()
        )  # type: ignore[arg-type]
        load.load_model = lambda *_: model  # type: ignore[assignment]

        def slow(self: SelectiveTrainer) -> object:
            going.touch()
            time.sleep(pause)
            return step(self)

        going, SelectiveTrainer.step = self.going, slow  # type: ignore[method-assign]
        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        return code

    def training(self) -> Command:
        """Wait until it trains."""
        end = time.monotonic() + 60
        while not self.going.exists():
            assert time.monotonic() < end, self.said.read_text()
            time.sleep(0.01)
        return self

    def signalled(self, *numbers: int) -> Command:
        """Send signals, one soon after the other."""
        for number in numbers:
            os.kill(self.child, number)
            time.sleep(0.02)
        return self

    def ended(self) -> tuple[int, str]:
        """Return its exit code and all that it said."""
        status = os.waitpid(self.child, 0)[1]
        return os.waitstatus_to_exitcode(status), self.said.read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Have a folder to work in, with nothing of ours beside it; and what is slow to import."""
    tiny_model()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "spec.json").write_text(tiny_spec(steps=3, passes=16).to_json())
    return tmp_path / "work"


@posix
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("signals", "code"),
    [([signal.SIGINT], 130), ([signal.SIGINT] * 5, 130), ([signal.SIGTERM], 143)],
    ids=["Ctrl-C", "Ctrl-C again and again", "SIGTERM"],
)
def test_a_signal_ends_a_command_with_its_state_kept(
    signals: list[int], code: int, folder: Path
) -> None:
    """It says where, and the same command goes on to the bytes of a run that was let alone."""
    first = ["--state", "st", "--out", "out.diff"]
    ended, said = Command(folder, *first, pause=0.2).training().signalled(*signals).ended()
    assert ended == code, said
    assert "what was done is kept in st" in said and "Traceback" not in said
    assert load_state(folder / "st").spec and not (folder / "out.diff").exists()
    ended, said = Command(folder, *first).ended()
    assert ended == 0, said
    assert "going on with a run that was stopped" in said
    assert load_diff(folder / "out.diff").changed
    assert not (folder / "st").exists(), "the diff is safe"
    ended, said = Command(folder, "--out", "fresh", "--no-runs").ended()
    assert (folder / "out.diff").read_bytes() == (folder / "fresh").read_bytes()
    ended, said = Command(folder, "--out", "again").ended()
    assert "finished before with the same inputs" in said
    assert (folder / "out.diff").read_bytes() == (folder / "again").read_bytes()
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["again", "fresh", "out.diff", "runs", "spec.json"]


@posix
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_runs_with_one_state_do_not_take_it_from_each_other(folder: Path) -> None:
    first = Command(folder, "--state", "st", "--out", "one", pause=0.3).training()
    second = Command(folder, "--state", "st", "--out", "two", "--seed", "1", runs="off")
    ended, said = second.ended()
    assert ended == 2
    assert "st: another run keeps its state there; wait for it, or name another file" in said
    assert not (folder / "two").exists()
    ended, _ = first.signalled(signal.SIGINT).ended()
    assert ended == 130 and load_state(folder / "st").spec
    ended, said = Command(folder, "--state", "st", "--out", "two", "--seed", "1").ended()
    assert ended == 2 and "the saved state belongs to another spec" in said
    assert load_state(folder / "st").spec, "it is still the first one's"


@posix
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_diff_that_cannot_be_saved_is_saved_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while it trains: nothing is lost, and it is said where it is."""
    real = autosave.save_diff

    def full(diff: object, path: Path) -> None:
        if path.name == "out.diff" and UNSAVED not in path.parts:
            raise OutputError(f"{path}: cannot be written (No space left on device)")
        real(diff, path)  # type: ignore[arg-type]

    monkeypatch.setattr(autosave, "save_diff", full)
    ended, said = Command(folder, "--out", "out.diff", "--state", "st").ended()
    assert ended == 2
    place = folder / "runs" / UNSAVED / "out.diff"
    assert f"the diff is in {Path('runs') / UNSAVED / 'out.diff'}, copy it from there" in said
    assert load_diff(place).changed
    assert load_state(folder / "st").finished, "nor is the state removed"
    monkeypatch.undo()
    ended, said = Command(folder, "--out", "out.diff", "--state", "st").ended()
    assert ended == 0 and "finished before" in said
    assert (folder / "out.diff").read_bytes() == place.read_bytes()
    assert not (folder / "st").exists()
