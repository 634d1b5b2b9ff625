"""Killed, out of space, in each other's way: the old file is there or the new one, never half."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from engine.diff.test_diff_file import spelled

from toys.small_unet import small_diff
from trust_engine.diff import load_diff, save_diff
from trust_engine.errors import OutputError
from trust_engine.io import files
from trust_engine.io.files import atomic_file, check_writable, write_atomically

posix = pytest.mark.skipif(sys.platform == "win32", reason="fork, kill and limits of POSIX")
STEPS = ("fdopen", "write", "flush", "fsync", "replace")


def die(*_: object) -> None:
    """End at once, without any cleaning up."""
    os.kill(os.getpid(), signal.SIGKILL)


class DyingFile:
    """A file in whose writing, or flushing, the process is killed half way."""

    def __init__(self, file: Any, step: str) -> None:
        self.file, self.step, self.written = file, step, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> DyingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        self.written += 1
        if self.step == "write" and self.written == 2:  # the header is out, a tensor half
            self.file.flush()
            die()
        self.file.write(content[len(content) // 2 :])

    def flush(self) -> None:
        if self.step == "flush":
            die()
        self.file.flush()


def arm(step: str, after: bool) -> None:
    """Let this process be killed before or after one step of saving."""
    real: Callable[..., Any] = getattr(os, step if step not in ("write", "flush") else "fdopen")

    def trap(*args: Any) -> Any:
        if step in ("write", "flush"):
            return DyingFile(real(*args), step)
        if after:
            real(*args)
        die()

    setattr(files.os, real.__name__, trap)


def in_a_child(work: Callable[[], None]) -> int:
    """Run in a forked process and return the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] & 0x7F


@posix
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("replaces", [False, True])
def test_killed_at_any_step(step: str, after: bool, replaces: bool, tmp_path: Path) -> None:
    path, old, new = tmp_path / "a", small_diff(), small_diff(1)
    if replaces:
        save_diff(old, path)

    def work() -> None:
        arm(step, after)
        save_diff(new, path)

    assert in_a_child(work) == signal.SIGKILL
    if (step, after) == ("replace", True):
        assert spelled(load_diff(path)) == spelled(new)
    elif replaces:
        assert spelled(load_diff(path)) == spelled(old)
    else:
        assert not path.exists()
    save_diff(new, path)  # and what the killed process left is in nobody's way
    assert spelled(load_diff(path)) == spelled(new)


@posix
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    path, diffs, chance = tmp_path / "a", (small_diff(), small_diff(1)), random.Random(0)
    save_diff(diffs[0], path)
    whole = [spelled(diff) for diff in diffs]
    for _ in range(10):
        child = os.fork()
        if child == 0:
            while True:
                for diff in diffs:
                    save_diff(diff, path)
        time.sleep(chance.uniform(0.005, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert spelled(load_diff(path)) in whole


@posix
def test_no_space_left(tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: the system refuses in mid-write."""
    import resource

    path = tmp_path / "a"
    save_diff(small_diff(), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            save_diff(small_diff(1), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_a_write_protected_file_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o444)
    for write in (lambda p: save_diff(small_diff(), p), check_writable):
        with pytest.raises(OutputError, match="write-protected"):
            write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"


@contextmanager
def another_writer(path: Path) -> Iterator[None]:
    """Let another program write the file while ours is being written."""
    with atomic_file(path) as file:
        file.write(b"ours")
        write_atomically(path, b"theirs")
        yield


@pytest.mark.parametrize("there", [False, True])
def test_the_slower_of_two_writers_is_told(there: bool, tmp_path: Path) -> None:
    if there:
        (tmp_path / "a").write_bytes(b"old")
    with (
        pytest.raises(OutputError, match="another program wrote it"),
        another_writer(tmp_path / "a"),
    ):
        pass
    assert (tmp_path / "a").read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a"]
