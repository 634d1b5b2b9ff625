"""Files from and for users: only safetensors is read, and nothing is half written."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import OutputError, TrustError

TEMPORARY = ".trust-"
ABANDONED = 24 * 3600  # seconds: a temporary file this old belongs to a process that was killed
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def refuse_pickle(path: Path | str, head: bytes, kind: type[TrustError]) -> None:
    """Raise `kind` for a file whose first bytes are those of a torch pickle."""
    if head[:2] in _PICKLES:
        raise kind(
            f"{path}: a torch pickle, which can run code when it is loaded, is refused; "
            "convert it to safetensors"
        )


@contextlib.contextmanager
def open_regular(path: Path, kind: type[TrustError]) -> Iterator[BinaryIO]:
    """Open a file for reading bytes; raises `kind` unless it is a file and no pickle."""
    try:
        if not path.is_file():
            raise kind(f"{path}: no such file")
        file = path.open("rb")
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        try:
            refuse_pickle(path, file.read(4), kind)
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
    """Raise OutputError unless a file can be written at `path`; call before the work starts."""
    folder = path.parent
    try:
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is a folder or device; give a file name")
        _refuse_protected(path)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot write there ({error.strerror})") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name, then rename: a reader never sees half a file."""
    with atomic_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Lend a file that replaces `path` when the block ends well, and is on disk by then.

    Killed at any point, the old file is there or the new one. When another program has written
    `path` in the meantime, its file stays and OutputError is raised.
    """
    name = ""
    try:
        before = _identity(path)
        _refuse_protected(path)
        _remove_abandoned(path.parent)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
        try:
            file = os.fdopen(handle, "wb")
        except BaseException:
            os.close(handle)
            raise
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        if _identity(path) != before:
            raise OutputError(
                f"{path}: another program wrote it in the meantime, and its file was left alone; "
                "save under another name"
            )
        os.replace(name, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _refuse_protected(path: Path) -> None:
    # Renaming onto a read-only file succeeds, but its owner said that it must stay.
    if path.is_file() and not path.stat().st_mode & 0o222:
        raise OutputError(f"{path}: is write-protected; choose another name, or unprotect it")


def _remove_abandoned(folder: Path) -> None:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat().st_mtime > ABANDONED:
                        os.unlink(entry.path)


def _sync_folder(folder: Path) -> None:
    # The file is safe by now; that its new name is, too, not every system can promise.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
