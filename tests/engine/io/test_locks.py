"""A lock is one process's at a time, whatever happens to its file."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from toys.file_systems import Renumbered, other, posix
from trust_engine.io import locks
from trust_engine.io.locks import FileLock, seize

LOCK = """
import sys
from pathlib import Path
from trust_engine.io.locks import FileLock
lock = FileLock(Path(sys.argv[1]))
print("ready" if lock.take() else "busy", flush=True)
sys.stdin.readline()
lock.give()
"""


def test_a_lock_is_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    running, mine = other(LOCK, path), FileLock(path)
    assert not mine.take() and not mine.taken
    running.communicate("\n")
    assert not path.exists()
    with mine:
        assert mine.taken and not FileLock(path).take()
    assert not path.exists()
    assert mine.take()
    mine.give()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    running = other(LOCK, path)
    running.kill()
    running.communicate()
    lock = FileLock(path)
    assert lock.take() and lock.taken
    lock.give()
    assert not path.exists()


@posix
def test_a_lock_whose_file_was_taken_away_is_no_lock(tmp_path: Path) -> None:
    """Its owner removes it while another waits: the other must not lock what nobody finds."""
    path = tmp_path / "lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    path.unlink()
    assert seize(handle)
    lock = FileLock(path)
    assert lock.take() and lock.taken
    assert path.exists()
    lock.give()
    os.close(handle)


@posix
def test_a_lock_is_the_file_of_its_name_as_far_as_numbers_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    assert locks._still_there(handle, path)
    path.rename(tmp_path / "old")
    assert not locks._still_there(handle, path)
    path.write_bytes(b"")  # another's, under the same name
    assert not locks._still_there(handle, path)
    real = os.stat
    monkeypatch.setattr(locks.os, "stat", lambda *a, **k: Renumbered(real(*a, **k)))
    assert locks._still_there(handle, path)
    os.close(handle)


@posix
def test_who_comes_while_a_lock_is_given_back_keeps_the_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner removes the file before it lets go: whoever locked that file tries again."""
    path, close = tmp_path / "lock", os.close

    def removed(handle: int) -> bool | None:
        monkeypatch.undo()
        path.unlink()
        return seize(handle)

    monkeypatch.setattr(locks, "seize", removed)
    lock = FileLock(path)
    assert lock.take() and lock.taken and path.exists()

    def another_comes(handle: int) -> None:
        close(handle)
        path.write_bytes(b"")

    monkeypatch.setattr(locks.os, "close", another_comes)
    lock.give()
    assert path.exists() and not lock.taken and not lock.free


@posix
def test_a_lock_that_others_always_take_first_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    monkeypatch.setattr(locks, "_still_there", lambda *_: False)
    lock = FileLock(tmp_path / "lock")
    try:
        assert not lock.take() and not lock.taken and not lock.free
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600


def test_windows_locks_the_first_byte_of_a_file_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[int, int, int]]()

    def locking(handle: int, how: int, count: int) -> None:
        asked.append((os.lseek(handle, 0, os.SEEK_CUR), how, count))
        if len(asked) > 1:
            raise PermissionError(errno.EACCES, "Permission denied")

    fake = SimpleNamespace(LK_NBLCK=2, locking=locking)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)  # type: ignore[misc]
    monkeypatch.setattr(locks, "fcntl", None)
    handle = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    os.write(handle, b"12345")
    assert seize(handle) is True and seize(handle) is False
    assert asked == [(0, 2, 1)] * 2
    os.close(handle)


def test_a_lock_that_cannot_be_written_protects_nothing_and_says_so(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "gone" / "lock")
    assert lock.take()
    assert lock.free and not lock.taken
    lock.give()
