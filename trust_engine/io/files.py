"""Files from and for users: only safetensors is read, and nothing is half written."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import OutputError, TrustError

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
    """Raise OutputError unless a file can be written at `path`; call before the work starts.

    Nothing is left behind: folders that are not there yet are made when the file is written.
    """
    try:
        path = _behind_links(path)
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is a folder or device; give a file name")
        _refuse_protected(path)
        with tempfile.TemporaryFile(dir=_nearest(path.parent)):
            pass
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: cannot write there ({told})") from error


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
    name, made = "", list[Path]()
    try:
        path = _behind_links(path)
        made = make_folder(path.parent)
        before = _identity(path)
        _refuse_protected(path)
        _remove_abandoned(path.parent)
        handle, name = _temporary(path)
        try:
            file = os.fdopen(handle, "wb")
        except BaseException:
            os.close(handle)
            raise
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if _identity(path) != before:
            raise OutputError(
                f"{path}: another program wrote it in the meantime, and its file was left alone; "
                "save under another name"
            )
        _keep_mode(path, name)
        os.replace(name, path)
        made = []
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
        remove_folders(made)


def _temporary(path: Path) -> tuple[int, str]:
    """Open a new file beside `path`; the system's own mask decides the mode of what is new."""
    mode = stat.S_IMODE(path.stat().st_mode) & 0o777 if path.exists() else 0o666
    name = str(path.parent / f"{TEMPORARY}{secrets.token_hex(8)}")
    return os.open(
        name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode
    ), name


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
