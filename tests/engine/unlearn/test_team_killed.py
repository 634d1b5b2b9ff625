"""Two processes that are killed go on together to the bytes of a run that was let alone."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed  # before the fork: each process has it then
from engine.unlearn.test_unlearn import saved

from toys.tiny import tiny_model, tiny_spec
from trust_engine.distributed import joined
from trust_engine.unlearn.autosave import Keeping
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.run_store import STATE, RunStore

SPEC = tiny_spec(steps=2)
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked and killed"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def pair(folder: Path) -> list[int]:
    """Start both processes; the first keeps the run after each step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    children = []
    for rank in range(2):
        os.environ["RANK"] = str(rank)
        child = os.fork()
        if child == 0:
            code = 70
            try:
                torch.set_num_threads(1)
                work(folder)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    return children


def work(folder: Path) -> None:
    """Do one process's part, as the command line does."""
    with joined() as team:
        run = Unlearning(tiny_model(), SPEC, team=team)
        store = RunStore(folder / "runs") if team.first else None
        with Keeping(run, store, every=0.0) as kept:
            run.resume = team.of_first(run.resume)
            kept._pause = 0.0
            for _ in kept:
                kept._pause = 0.0
                time.sleep(0.01)
            name = "first" if team.first else "second"
            if run.resume is not None:
                (folder / "resumed").touch()
            (folder / name).mkdir()
            (folder / f"{name}.sha").write_text(saved(run.diff, folder / name))
        team.gather(None)


def test_killed_together_they_go_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"):
        monkeypatch.setenv(name, "")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = Unlearning(tiny_model(), SPEC)
        list(run)
        (tmp_path / "whole").mkdir()
        whole = saved(run.diff, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    chance = random.Random()
    children, end = pair(tmp_path), time.monotonic() + 60
    while not list((tmp_path / "runs").glob(f"*{STATE}")):
        assert time.monotonic() < end, "nothing was kept"
        time.sleep(0.005)
    time.sleep(chance.uniform(0.0, 0.03))
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not (tmp_path / "first.sha").exists(), "it ended before it was killed"
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in pair(tmp_path)]
    assert codes == [0, 0]
    assert (tmp_path / "resumed").exists(), "the killed ones left something to go on from"
    assert {(tmp_path / f"{name}.sha").read_text() for name in ("first", "second")} == {whole}
