"""Runs, stopped or finished, and parts of audits, kept on disk by what they were asked.

It knows no host: whoever opens one says where it lies. One file a run, all written by us under
names of their own; anything else in the folder is left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError, SpecError
from ..io.files import check_writable
from ..io.locks import FileLock
from ..settings import RUNS as SETTING
from .run_state import RunState, load_state, save_state

SIZE = "TRUST_RUNS_GB"  # environment: how much it may take
LIMIT = 10 * 10**9  # bytes
STATE, FINISHED, LOCK = ".state", ".finished", ".lock"
CELL = ".cell"  # a finished part of an audit
UNSAVED = "unsaved"  # folder of diffs that could not be written where they were wanted
_OURS = re.compile(r"[0-9a-f]{32}(\.state|\.finished|\.cell|\.lock)")
_OFF = ("off", "0", "no", "false", "none")


def is_off() -> bool:
    """Tell whether the environment switches run stores off."""
    return os.environ.get(SETTING, "").strip().lower() in _OFF


def user_folder() -> Path | None:
    """Return the folder for a user's runs: as the environment says, else where caches lie.

    None when there is no such folder: without a home, or when it is switched off.
    """
    asked = os.environ.get(SETTING, "").strip()
    if is_off():
        return None
    if asked:
        return Path(asked).expanduser()
    with contextlib.suppress(RuntimeError):
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
            return Path(local) / "trust-unlearn" / "runs"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "trust-unlearn" / "runs"
        cache = os.environ.get("XDG_CACHE_HOME", "")
        base = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
        return base / "trust-unlearn" / "runs"
    return None


def user_store(folder: Path | None = None) -> RunStore | None:
    """Open the store of a user's runs, by default where `user_folder` says.

    folder: a host's own place for it, unless the environment names another. None when it is
    switched off, or when there is no folder. Raises SpecError for a bad size in the environment.
    """
    if folder is None or is_off() or os.environ.get(SETTING, "").strip():
        folder = user_folder()
    size = os.environ.get(SIZE, "").strip()
    try:
        limit = round(float(size) * 1e9) if size else LIMIT
        if not 0 <= limit < 10**18:
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise SpecError(f"{SIZE} is {size[:40]!r}; give a number of gigabytes") from error
    return RunStore(folder, limit) if folder is not None and limit else None


@dataclass(frozen=True)
class Contents:
    """What a store holds.

    finished, stopped: runs; cells: finished parts of audits; size: bytes in all.
    """

    finished: int = 0
    stopped: int = 0
    size: int = 0
    cells: int = 0

    def __str__(self) -> str:
        runs = f"{self.finished} finished and {self.stopped} unfinished"
        audits = f", {self.cells} parts of audits" if self.cells else ""
        return f"{runs} runs{audits}, {self.size / 1e6:,.1f} MB"


@dataclass(frozen=True)
class RunStore:
    """A folder of runs, of at most `limit` bytes: what was used longest ago makes room first."""

    folder: Path
    limit: int = LIMIT

    def check(self) -> None:
        """Raise OutputError unless the folder can be written to."""
        check_writable(self.folder / f"{'0' * 32}{STATE}")

    def path(self, key: str, kind: str) -> Path:
        """Return the path of a run's file."""
        return self.folder / f"{key}{kind}"

    def lock(self, key: str) -> FileLock:
        """Return the lock of a run, to be held while it is at work; its folder is the caller's."""
        return FileLock(self.path(key, LOCK))

    def find(self, key: str) -> RunState | None:
        """Return a run that is finished, or where it was stopped; a damaged one is taken away."""
        for kind in (FINISHED, STATE):
            path = self.path(key, kind)
            try:
                if not path.is_file():
                    continue
                state = load_state(path)
                if state.finished == (kind == FINISHED):
                    with contextlib.suppress(OSError):
                        os.utime(path)
                    return state
            except (SpecError, OSError):
                pass
            self._remove(path)
        return None

    def keep(self, key: str, state: RunState, digests: dict[int, object] | None = None) -> Path:
        """Write a run's state, after making room for it; raises OutputError."""
        kind = FINISHED if state.finished else STATE
        path = self.path(key, kind)
        self.make_room(state.size, key)
        save_state(state, path, digests)
        return path

    def make_room(self, size: int, key: str = "") -> None:
        """Remove what was used longest ago until `size` bytes fit; raises OutputError.

        What a run that is at work has written stays, and so do the files of `key`.
        """
        if size > self.limit:
            raise OutputError(
                f"{self.folder}: a run of {size / 1e9:.1f} GB does not fit into a run store of "
                f"{self.limit / 1e9:.1f} GB"
            )
        found = sorted(self._entries(), key=lambda entry: entry[0])
        whole = sum(entry[1] for entry in found if entry[2].name.split(".")[0] != key)
        for _, taken, path in found:
            if whole + size <= self.limit:
                break
            name = path.name.split(".")[0]
            if name != key and not self._in_use(name):
                self._remove(path)
                whole -= taken
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self._there()).free
            if size > free:
                raise OutputError(
                    f"{self.folder}: a run of {size / 1e9:.2f} GB does not fit into the "
                    f"{free / 1e9:.2f} GB that are free there"
                )

    def drop(self, key: str, kind: str = STATE) -> None:
        """Remove one of a run's files."""
        self._remove(self.path(key, kind))

    @property
    def contents(self) -> Contents:
        """Count what is kept."""
        return _counted((taken, path) for _, taken, path in self._entries())

    def clear(self) -> Contents:
        """Remove all that is kept but for runs at work; returns what was removed."""
        removed = []
        for _, taken, path in list(self._entries()):
            if not self._in_use(path.name.split(".")[0]):
                self._remove(path)
                removed.append((taken, path))
        return _counted(removed)

    def _in_use(self, key: str) -> bool:
        path = self.path(key, LOCK)
        if not path.exists():
            return False
        lock = FileLock(path)
        taken = lock.take()
        lock.give()
        return not taken

    def _there(self) -> Path:
        folder = self.folder
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return folder

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Yield (time of last use, bytes, path) of all that is ours, locks left out."""
        try:
            entries = list(os.scandir(self.folder))
        except OSError:
            return
        for entry in entries:
            with contextlib.suppress(OSError):
                ours = _OURS.fullmatch(entry.name) and not entry.name.endswith(LOCK)
                if ours and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield status.st_mtime, status.st_size, Path(entry.path)

    @staticmethod
    def _remove(path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _counted(files: Iterable[tuple[int, Path]]) -> Contents:
    """Count files by what they are, each with its bytes."""
    kinds: Counter[str] = Counter()
    size = 0
    for taken, path in files:
        kinds[path.suffix] += 1
        size += taken
    return Contents(kinds[FINISHED], kinds[STATE], size, kinds[CELL])
