"""Files from and for users: only safetensors is read, and nothing is half written."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import OutputError, TrustError
from .locks import LOCKS, seize

TEMPORARY = ".trust-"
TRIES = 10  # names of a temporary file
# What fsync answers where a file system has no such thing, as some shares and mounts.
UNSUPPORTED = {
    getattr(errno, name)
    for name in ("EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EPERM", "EACCES", "ENOTTY", "EROFS")
    if hasattr(errno, name)
}
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

_PAGE = "a web page, not a model: get the file anew, by its own link, logged in if it asks for that"
_OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file it stands for; run git lfs pull",
    b"<!doctype": _PAGE,
    b"<html": _PAGE,
    b"<?xml": _PAGE,
    b"gguf": "a GGUF file, whose weights are quantised; take the safetensors version in float16",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"rar!": "a RAR archive; unpack it",
    b"\x89hdf": "an HDF5 file; only safetensors is read",
}


def refuse_pickle(path: Path | str, head: bytes, kind: type[TrustError]) -> None:
    """Raise `kind` for a file whose first bytes are those of a torch pickle."""
    if head[:2] in _PICKLES:
        raise kind(
            f"{path}: a torch pickle, which can run code when it is loaded, is refused; "
            "convert it to safetensors"
        )


def refuse_other(path: Path | str, head: bytes, kind: type[TrustError]) -> None:
    """Raise `kind` for a file that its first bytes tell to be no safetensors file."""
    refuse_pickle(path, head, kind)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, said in _OTHERS.items():
        if start.startswith(magic):
            raise kind(f"{path}: {said}")
    if not head:
        raise kind(f"{path}: is empty; get the file anew")


@contextlib.contextmanager
def open_regular(path: Path, kind: type[TrustError]) -> Iterator[BinaryIO]:
    """Open a file for reading bytes; raises `kind` unless it is a file and no pickle."""
    try:
        if not path.is_file():
            is_else = "is a folder, not a file" if path.is_dir() else "is no regular file"
            raise kind(f"{path}: {is_else if path.exists() else 'no such file'}")
        file = path.open("rb")
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        try:
            refuse_other(path, file.read(64), kind)
            file.seek(0)
            yield file
        except OSError as error:
            raise kind(f"{path}: cannot be read ({error.strerror or error})") from error


@contextlib.contextmanager
def open_safetensors(path: Path, kind: type[TrustError]) -> Iterator[Any]:
    """Open a safetensors file lazily; raises `kind` for anything else, pickles by name."""
    from safetensors import SafetensorError, safe_open

    with open_regular(path, kind):
        pass
    try:
        opened = safe_open(str(path), "pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise kind(f"{path}: not a safetensors file, or cut short ({error})") from error
    with opened as file:
        yield file


def check_writable(path: Path) -> None:
    """Raise OutputError unless a file can be written at `path`; call before the work starts.

    Nothing is left behind: folders that are not there yet are made when the file is written.
    """
    try:
        path = _behind_links(path)
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is a folder or device; give a file name")
        _refuse_protected(path)
        _try_out(_nearest(path.parent) / path.name)
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: cannot write there ({told})") from error


def _try_out(path: Path) -> None:
    """Do all that saving a file does, with a small file of another name; raises OSError."""
    with _temporary(path, fresh=True) as (handle, name):
        moved = f"{name}-"
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(b"may be removed")
                file.flush()
                sync(file.fileno())
            os.replace(name, moved)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(moved)


def _nearest(folder: Path) -> Path:
    """Return the nearest folder that is there already, upwards from `folder`."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(20, "Not a directory")
    return folder


def _behind_links(path: Path) -> Path:
    # A link stays a link: the file that it points to is the one that is written.
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it; return the ones that were not there, deepest first."""
    missing = []
    while not folder.exists() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
    return missing


def remove_folders(made: list[Path]) -> None:
    """Take away folders that `make_folder` made and that are still empty."""
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name, then rename: a reader never sees half a file."""
    with atomic_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Lend a file that replaces `path` when the block ends well, and is on disk by then.

    Killed at any point, the old file is there or the new one. A file that was there keeps its mode
    and, where the system lets it, its owner; a link keeps pointing where it pointed. When another
    program has written `path` in the meantime, its file stays and OutputError is raised.
    """
    made = list[Path]()
    try:
        path = _behind_links(path)
        made = make_folder(path.parent)
        before = _identity(path)
        _refuse_protected(path)
        _remove_abandoned(path.parent)
        with _temporary(path) as (handle, name):
            with _opened(handle) as file:
                yield file
                file.flush()
                sync(file.fileno())
            if _changed(before, _identity(path)):
                raise OutputError(
                    f"{path}: another program wrote it in the meantime, and its file was left "
                    "alone; save under another name"
                )
            _keep_mode(path, name)
            os.replace(name, path)
        made = []
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        remove_folders(made)


def _opened(handle: int) -> BinaryIO:
    try:
        return os.fdopen(handle, "wb")
    except BaseException:
        os.close(handle)
        raise


@contextlib.contextmanager
def _temporary(path: Path, fresh: bool = False) -> Iterator[tuple[int, str]]:
    """Lend (an open file, its name) beside `path`, and take away what is left of it.

    Locked until then: so others tell it from one whose process was killed. The system's own mask
    decides the mode of what is new; fresh: whatever stands at `path`.
    """
    mode = 0o666 if fresh or not path.exists() else stat.S_IMODE(path.stat().st_mode) & 0o777
    kind = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    name, guard = "", None
    try:
        for _ in range(TRIES):
            name = str(path.parent / f"{TEMPORARY}{secrets.token_hex(8)}")
            handle = os.open(name, kind, mode)
            guard = _guarded(name)
            if guard is not None:
                break
            os.close(handle)  # taken for an abandoned one before it was locked
        else:
            raise OSError(errno.EBUSY, "other programs remove what is written")
        yield handle, name
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if guard is not None and guard >= 0:
            os.close(guard)


def _guarded(name: str) -> int | None:
    """Lock a file by a handle of its own, which outlives the writer's; None if it is being removed.

    -1 where that is not needed: Windows removes no file that is open, and none can be renamed.
    """
    if not LOCKS:
        return -1
    try:
        guard = os.open(name, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError:
        return -1  # such as one whose mode lets nobody read it
    if seize(guard) is False or not os.path.lexists(name):
        os.close(guard)
        return None
    return guard


def sync(handle: int) -> None:
    """Have a file on disk; raises OSError for a failure, not where there is no such promise."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _keep_mode(path: Path, name: str) -> None:
    """Give what replaces `path` its mode and owner; not every file system has them."""
    with contextlib.suppress(OSError):
        old, new = os.stat(path), os.stat(name)
        if hasattr(os, "chown") and (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            with contextlib.suppress(OSError):
                os.chown(name, old.st_uid, old.st_gid)
        if stat.S_IMODE(old.st_mode) != stat.S_IMODE(new.st_mode):
            os.chmod(name, stat.S_IMODE(old.st_mode))


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return (number, time, size) of a file; 0 for a number that is another at each look."""
    try:
        status, again = os.stat(path), os.stat(path)
    except FileNotFoundError:
        return None
    number = status.st_ino if status.st_ino == again.st_ino else 0
    return number, status.st_mtime_ns, status.st_size


def _changed(before: tuple[int, int, int] | None, now: tuple[int, int, int] | None) -> bool:
    """Tell whether another program has written a file; numbers count where a file keeps its own."""
    if before is None or now is None:
        return before is not now
    numbered = bool(before[0] and now[0])
    return before[1:] != now[1:] or (numbered and before[0] != now[0])


def _refuse_protected(path: Path) -> None:
    # Renaming onto a read-only file succeeds, but its owner said that it must stay.
    if path.is_file() and not path.stat().st_mode & 0o222:
        raise OutputError(f"{path}: is write-protected; choose another name, or unprotect it")


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left: what nobody holds locked. Clocks have no say in it."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove_unlocked(entry.path)


def _remove_unlocked(name: str) -> None:
    if not LOCKS:
        os.unlink(name)  # Windows refuses that for an open file
        return
    handle = os.open(name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        if seize(handle):
            os.unlink(name)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    # The file is safe by now; that its new name is, too, not every system can promise.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
