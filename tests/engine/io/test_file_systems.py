"""File systems that lack something, clocks that are off, killed processes: nothing is lost."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toys.file_systems import Renumbered, no_others_closed, other, posix
from trust_engine.errors import ModelError, OutputError
from trust_engine.io import files
from trust_engine.io.files import (
    TEMPORARY,
    atomic_file,
    check_writable,
    open_regular,
    open_safetensors,
    write_atomically,
)
from trust_engine.io.locks import FileLock

HOLD = """
import sys, time
from pathlib import Path
from trust_engine.io.files import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write(b"from the other process")
    print("ready", flush=True)
    sys.stdin.readline()
"""


def refusing(number: int) -> Callable[..., Any]:
    """Return a system call that this file system does not have."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
@pytest.mark.parametrize("there", [False, True])
def test_neither_modes_nor_fsync_are_needed(
    number: int, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        (tmp_path / "a").write_bytes(b"old")
    for name in ("chmod", "fchmod", "chown", "fsync"):
        if hasattr(os, name):
            monkeypatch.setattr(files.os, name, refusing(number))
    check_writable(tmp_path / "a")
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_what_did_not_reach_the_disk_is_an_error(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(files.os, "fsync", refusing(number))
    for work in (check_writable, lambda path: write_atomically(path, b"new")):
        with pytest.raises(OutputError, match=os.strerror(number)):
            work(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_what_saving_would_need_is_tried_before_the_work(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mounts of object stores let files be made, but not renamed."""
    monkeypatch.setattr(files.os, call, refusing(errno.EIO))
    with pytest.raises(OutputError, match=r"new/a: cannot write there \(Input/output error\)"):
        check_writable(tmp_path / "new" / "a")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_inode_numbers_may_change_at_each_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    real = os.stat
    monkeypatch.setattr(files.os, "stat", lambda *a, **k: Renumbered(real(*a, **k)))
    assert files._identity(tmp_path / "a")[0] == 0  # type: ignore[index]
    write_atomically(tmp_path / "a", b"new")
    with pytest.raises(OutputError, match="another program"), atomic_file(tmp_path / "a"):
        (tmp_path / "a").write_bytes(b"theirs")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"theirs"


@pytest.mark.parametrize("how", ["written", "replaced", "removed", "made"])
def test_what_another_program_wrote_meanwhile_stays(how: str, tmp_path: Path) -> None:
    """Also when it is of the same size and time."""
    path = tmp_path / "a"
    if how != "made":
        path.write_bytes(b"old")
        before = path.stat()
    with pytest.raises(OutputError, match="another program wrote it"), atomic_file(path) as file:
        file.write(b"ours")
        if how == "removed":
            path.unlink()
        elif how == "replaced":
            (tmp_path / "b").write_bytes(b"the")
            os.utime(tmp_path / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
            os.replace(tmp_path / "b", path)
        else:
            path.write_bytes(b"the")
            os.utime(path, ns=(1, 1))
    assert how == "removed" or path.read_bytes() == b"the"
    assert os.listdir(tmp_path) == ([] if how == "removed" else ["a"])


@posix
@pytest.mark.parametrize("days", [-2, 0, 2])
def test_a_clock_that_is_off_costs_no_running_process_its_file(days: int, tmp_path: Path) -> None:
    running = other(HOLD, tmp_path / "slow")
    (temporary,) = tmp_path.glob(f"{TEMPORARY}*")
    os.utime(temporary, (time.time() + days * 86400,) * 2)
    write_atomically(tmp_path / "a", b"x")
    assert temporary.exists()
    running.communicate("\n")
    assert running.returncode == 0
    assert (tmp_path / "slow").read_bytes() == b"from the other process"
    assert sorted(os.listdir(tmp_path)) == ["a", "slow"]


@posix
def test_what_a_killed_process_left_goes_with_the_next_file(tmp_path: Path) -> None:
    running = other(HOLD, tmp_path / "slow")
    running.kill()
    running.communicate()
    (left,) = tmp_path.glob(f"{TEMPORARY}*")
    (tmp_path / "mine").write_bytes(b"")
    (tmp_path / f"{TEMPORARY}folder").mkdir()
    (tmp_path / f"{TEMPORARY}link").symlink_to(tmp_path / "mine")
    write_atomically(tmp_path / "a", b"x")
    assert not left.exists()
    assert sorted(os.listdir(tmp_path)) == [f"{TEMPORARY}folder", f"{TEMPORARY}link", "a", "mine"]


@posix
def test_a_name_that_is_cleared_away_before_it_is_locked_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = files._guarded, list[str]()

    def late(name: str) -> int | None:
        seen.append(name)
        if len(seen) == 1:
            files._remove_abandoned(tmp_path)  # another process comes by
        return real(name)

    monkeypatch.setattr(files, "_guarded", late)
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert len(set(seen)) == 2
    monkeypatch.setattr(files, "_guarded", lambda name: os.unlink(name))
    with pytest.raises(OutputError, match="other programs remove what is written"):
        write_atomically(tmp_path / "a", b"newer")
    assert os.listdir(tmp_path) == ["a"]


@posix
def test_a_file_system_without_locks_keeps_what_may_be_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{TEMPORARY}old").write_bytes(b"")
    monkeypatch.setattr("trust_engine.io.locks.fcntl.flock", refusing(errno.ENOLCK))
    write_atomically(tmp_path / "a", b"new")
    assert sorted(os.listdir(tmp_path)) == [f"{TEMPORARY}old", "a"]
    lock = FileLock(tmp_path / "lock")
    assert lock.take() and lock.free and not lock.taken


def test_a_file_counts_as_changed_by_its_number_only_where_it_keeps_one() -> None:
    seen = (5, 10, 3)
    assert not files._changed(seen, seen)
    assert not files._changed(None, None)
    assert files._changed(seen, None) and files._changed(None, seen)
    assert files._changed(seen, (6, 10, 3))
    assert files._changed(seen, (5, 11, 3)) and files._changed(seen, (5, 10, 4))
    assert files._changed((0, 10, 3), (0, 11, 3))
    for one, two in ((seen, (0, 10, 3)), ((0, 10, 3), seen), ((0, 10, 3), (0, 10, 3))):
        assert not files._changed(one, two)


@posix
def test_content_is_on_disk_before_its_name_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def syncing(handle: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        done.append(f"{kind} {os.fstat(handle).st_size}" if kind == "file" else kind)
        fsync(handle)

    def replacing(old: str, new: Path) -> None:
        done.append(f"name {Path(new).name}")
        replace(old, new)

    monkeypatch.setattr(files.os, "fsync", syncing)
    monkeypatch.setattr(files.os, "replace", replacing)
    write_atomically(tmp_path / "a", b"12345")
    assert done == ["file 5", "name a", "folder"]


@posix
@pytest.mark.parametrize(("mask", "mode"), [(0, 0o666), (0o022, 0o644), (0o077, 0o600)])
def test_a_new_file_is_as_open_as_the_mask_lets_it_be(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@posix
@pytest.mark.parametrize("mode", [0o444, 0o555, 0o400, 0o001])
def test_a_file_that_nobody_may_write_stays(tmp_path: Path, mode: int) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(mode)
    for work in (check_writable, lambda path: write_atomically(path, b"new")):
        with pytest.raises(OutputError, match="a: is write-protected"):
            work(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"


@posix
@pytest.mark.parametrize("mode", [0o200, 0o020, 0o002, 0o664])
def test_a_file_that_somebody_may_write_is_replaced(tmp_path: Path, mode: int) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(mode)
    check_writable(tmp_path / "a")
    write_atomically(tmp_path / "a", b"new")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    (tmp_path / "a").chmod(0o600)
    assert (tmp_path / "a").read_bytes() == b"new"


@posix
def test_a_temporary_that_cannot_be_locked_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one whose mode lets nobody read it; and no handle but ours is closed."""
    real = os.open

    def unreadable(path: Any, flags: int, *mode: int) -> int:
        if TEMPORARY in str(path) and not flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *mode)

    monkeypatch.setattr(files.os, "open", unreadable)
    with no_others_closed():
        write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


@posix
def test_where_files_cannot_be_locked_what_is_abandoned_is_removed_and_handles_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, which itself keeps files that are in use."""
    (tmp_path / f"{TEMPORARY}old").write_bytes(b"")
    monkeypatch.setattr(files, "LOCKS", False)
    with no_others_closed():
        write_atomically(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"


@posix
def test_a_trial_is_not_as_protected_as_another_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows could not take it away again."""
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "a").chmod(0o444)
    modes, replace = list[int](), os.replace

    def replacing(old: str, new: str) -> None:
        modes.append(os.stat(old).st_mode)
        replace(old, new)

    monkeypatch.setattr(files.os, "replace", replacing)
    check_writable(tmp_path / "new" / "a")
    assert len(modes) == 1 and modes[0] & 0o200


def test_no_handle_is_left_open(tmp_path: Path) -> None:
    def opened() -> int:
        handle = os.open(os.devnull, os.O_RDONLY)
        os.close(handle)
        return handle

    first = opened()
    for _ in range(5):
        check_writable(tmp_path / "a")
        write_atomically(tmp_path / "a", b"x")
        with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a"):
            raise ZeroDivisionError
        with pytest.raises(OutputError):
            write_atomically(tmp_path, b"x")
    assert opened() == first


@pytest.mark.parametrize(
    "head", [b"PK\x03\x04", b"\x80\x02cc", b"\x80\x03", b"\x80\x04x", b"\x80\x05"]
)
def test_pickles_are_refused_by_their_first_bytes(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "a").write_bytes(head + b"rest")
    with (
        pytest.raises(ModelError, match="a torch pickle"),
        open_regular(tmp_path / "a", ModelError),
    ):
        pytest.fail("it was opened")


def test_a_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"P\x80KPK content")
    with open_regular(tmp_path / "a", ModelError) as file:
        assert file.read() == b"P\x80KPK content"
    for path, told in ((tmp_path / "gone", "no such file"), (tmp_path, "is a folder, not a file")):
        with pytest.raises(ModelError, match=told), open_regular(path, ModelError):
            pytest.fail("it was opened")


def test_what_is_no_safetensors_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(ModelError, match="is empty"), open_regular(tmp_path / "a", ModelError):
        pytest.fail("it was opened")
    for content in (b"text", bytes(64)):
        (tmp_path / "a").write_bytes(content)
        with (
            pytest.raises(ModelError, match="not a safetensors file, or cut short"),
            open_safetensors(tmp_path / "a", ModelError),
        ):
            pytest.fail("it was opened")


def test_folders_are_made_and_taken_back_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    made = files.make_folder(tmp_path / "there" / "new" / "er")
    assert made == [tmp_path / "there" / "new" / "er", tmp_path / "there" / "new"]
    assert files.make_folder(tmp_path / "there") == []
    (tmp_path / "there" / "new" / "mine").write_bytes(b"")
    files.remove_folders(made)
    assert os.listdir(tmp_path / "there" / "new") == ["mine"]


def test_a_folder_that_another_process_makes_meanwhile_is_as_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").mkdir()
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: self.name != "new" and exists(self))
    assert files.make_folder(tmp_path / "new" / "er")[-1] == tmp_path / "new"
    monkeypatch.undo()
    assert (tmp_path / "new" / "er").is_dir()


@posix
@pytest.mark.parametrize("other_owner", [False, True])
def test_an_owner_is_kept_where_it_is_another(
    other_owner: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    real, given = os.stat, list[tuple[int, int]]()
    group = real(tmp_path / "a").st_gid

    def owned(path: Any, **how: Any) -> Any:
        status = Renumbered(real(path, **how))
        status.st_ino = status.status.st_ino
        if other_owner and str(path).endswith("a"):
            status.st_uid = 12345
        return status

    monkeypatch.setattr(files.os, "stat", owned)
    monkeypatch.setattr(files.os, "chown", lambda _, uid, gid: given.append((uid, gid)))
    write_atomically(tmp_path / "a", b"new")
    assert given == ([(12345, group)] if other_owner else [])


@pytest.mark.parametrize(
    ("error", "told"),
    [(OSError("odd"), r"\(odd\)"), (OSError(5, "Input/output error"), r"\(Input/output error\)")],
)
def test_a_disk_that_fails_in_the_middle_is_said(error: OSError, told: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    with (
        pytest.raises(ModelError, match=f"a: cannot be read {told}$"),
        open_regular(tmp_path / "a", ModelError),
    ):
        raise error
