"""Files from and for users: only safetensors is read, and nothing is half written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import OutputError, TrustError


@contextlib.contextmanager
def open_safetensors(path: Path, kind: type[TrustError]) -> Iterator[Any]:
    """Open a safetensors file lazily; raises `kind` for anything else, pickles by name."""
    from safetensors import SafetensorError, safe_open

    try:
        if not path.is_file():
            raise kind(f"{path}: no such file")
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror})") from error
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise kind(
            f"{path}: a torch pickle, which can run code when it is loaded, is refused; "
            "convert it to safetensors"
        )
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
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot write there ({error.strerror})") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name, then rename: a reader never sees half a file."""
    name = ""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".trust-")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        mode = 0o666 & ~_umask()
        os.chmod(name, mode)
        os.replace(name, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
