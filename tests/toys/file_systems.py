"""What tests of files share: other processes, and files with awkward numbers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

posix = pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")


def other(code: str, path: Path) -> subprocess.Popen[str]:
    """Run code in another process up to where it says that it is ready."""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


class Renumbered:
    """A file's status with an inode number that is new at each look."""

    count = 1000

    def __init__(self, status: os.stat_result) -> None:
        Renumbered.count += 1
        self.status, self.st_ino, self.st_uid = status, Renumbered.count, status.st_uid

    def __getattr__(self, name: str) -> Any:
        return getattr(self.status, name)


@contextlib.contextmanager
def no_others_closed() -> Iterator[None]:
    """Check that handles which were open before are open afterwards."""
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    yield
    for handle in (0, 1, 2, *taken):
        os.fstat(handle)
    for handle in taken:
        os.close(handle)
