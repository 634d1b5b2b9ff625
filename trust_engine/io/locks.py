"""Locks between processes, which end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCKS = fcntl is not None  # of a kind that do not keep others from reading and removing
BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


def seize(handle: int) -> bool | None:
    """Lock an open file without waiting: True if it is ours now, False if another's, None if
    the file system has no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            windows: Any = msvcrt
            os.lseek(handle, 0, os.SEEK_SET)
            windows.locking(handle, windows.LK_NBLCK, 1)
    except OSError as error:
        return False if error.errno in BUSY else None
    return True


class FileLock:
    """A lock file that is there while something is in use; `taken` tells whether it is ours.

    Where files cannot be locked, or the lock file cannot be written, `free` is True and nothing is
    protected: what is written is whole all the same, for it is written beside and renamed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.taken = self.free = False
        self._handle = -1

    def take(self) -> bool:
        """Try to get it, without waiting; False while another process has it."""
        for _ in range(10):
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError:
                self.free = True
                return True
            got = seize(handle)
            if got and _still_there(handle, self.path):
                self._handle, self.taken = handle, True
                return True
            os.close(handle)
            if got is None:
                self.free = True
                return True
            if got is False:
                return False
        return False  # others keep coming first

    def give(self) -> None:
        """Let others have it, and take the lock file away."""
        if self.taken:
            if fcntl is not None:  # while it is ours: whoever waits finds it gone, and makes anew
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
            os.close(self._handle)
            if fcntl is None:
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
        self.taken = self.free = False

    def __enter__(self) -> FileLock:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.give()


def _still_there(handle: int, path: Path) -> bool:
    """Tell whether a locked file is the one of that name: its last owner may have removed it."""
    try:
        named = os.stat(path)
    except OSError:
        return False
    opened = os.fstat(handle)
    # Some file systems number a file anew at each look: then its name has to do.
    return opened.st_ino == named.st_ino or os.stat(path).st_ino != named.st_ino
