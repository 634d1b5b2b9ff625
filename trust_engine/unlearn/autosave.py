"""Keep a run while it is at work, so that nothing that happens to it costs more than a minute."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from ..diff import WeightDiff, save_diff
from ..errors import DivergenceError, OutputError, SpecError, TrustError
from ..io.files import make_folder, remove_folders
from ..io.locks import FileLock
from .run import StepReport, Unlearning
from .run_state import RunState, load_state, save_state, wanted
from .run_store import FINISHED, STATE, UNSAVED, RunStore

EVERY = 60.0  # seconds between two saves
SHARE = 0.05  # of the time that saving may take: large states are written less often
Say = Callable[[str], None]


class StateFile:
    """A file that a user named for a run's state: locked while a run uses it, read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = FileLock(path.with_name(f".{path.name}.lock"))
        self.state: RunState | None = None

    def __enter__(self) -> StateFile:
        if not self.lock.take():
            raise OutputError(
                f"{self.path}: another run keeps its state there; wait for it, or name another file"
            )
        try:
            self.state = wanted(self.path)
        except BaseException:
            self.lock.give()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.give()

    def remove(self, run: Unlearning) -> None:
        """Take the file away if what it holds is this run's."""
        with contextlib.suppress(TrustError, OSError):
            state = load_state(self.path)
            if (state.spec, state.base) == (run.spec.to_json(), run.identity):
                self.path.unlink(missing_ok=True)


class Keeping:
    """Iterate a run through it, within `with`, and save its diff within that block, too.

    Its state is written every minute and when the block is left by an error or an interrupt, and is
    removed when the block ends well. With a store, an earlier run of the same inputs is gone on
    with, or taken as it is if it was finished; `said` tells. Nothing of it changes the diff.
    """

    def __init__(
        self,
        run: Unlearning,
        store: RunStore | None = None,
        file: StateFile | None = None,
        say: Say | None = None,
        every: float = EVERY,
    ) -> None:
        self.run, self.store, self.file, self.every = run, store, file, every
        self.said: list[str] = []
        self.recalled = False  # finished by a run before this one
        self._say, self._told = say, False
        self._key = ""
        self._lock: FileLock | None = None
        self._made: list[Path] = []  # folders that are taken away again unless something is kept
        self._last, self._pause = time.monotonic(), every
        self._best: tuple[int, int, int] = (-1, -1, -1)
        self._over = False
        self._digests: dict[int, Any] = {}

    def __enter__(self) -> Keeping:
        if self.store is not None:
            self._open(self.store)
        try:
            self._choose()
        except BaseException:
            self._close()
            raise
        return self

    def _choose(self) -> None:
        """Go on from whatever is furthest: the user's file, the store, what the run was given."""
        run = self.run
        given = self.file.state if self.file else None
        if given is not None:
            run.check(given)
        found = self.store.find(self._key) if self.store else None
        states = [state for state in (given, found, run.resume) if state is not None]
        if not states:
            return
        best = max(states, key=lambda state: (state.finished, state.reached))
        run.resume, self.recalled = best, best.finished
        if self.recalled:
            self.say("this run was finished before with the same inputs: its result is taken over")
        elif best is given or best is found:
            share = min(0.99, run.behind(best))
            self.say(f"going on with a run that was stopped at {share:.0%}")

    def __iter__(self) -> Iterator[StepReport]:
        self._last = time.monotonic()
        for report in self.run:
            if self._kept_anywhere and time.monotonic() - self._last >= self._pause:
                self.save()
            yield report
        self._over = True
        if self._kept_anywhere and not self.recalled:
            self._keep_finished()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, DivergenceError):  # from the same state it would diverge again
                self._drop()
            elif isinstance(error, SpecError) and not self._over:
                pass  # nothing that was computed changes the answer
            elif error is None and self._over:
                self._drop()
                if self.file:
                    self.file.remove(self.run)
            elif not self._over and self._kept_anywhere:
                self.save()
                self._say_where()
        finally:
            self._close()

    def _close(self) -> None:
        if self._lock is not None:
            self._lock.give()
        remove_folders(self._made)

    @property
    def _kept_anywhere(self) -> bool:
        return self.store is not None or self.file is not None

    def say(self, text: str) -> None:
        """Note what there is to say, and hand it on."""
        self.said.append(text)
        if self._say is not None:
            self._say(text)

    def save(self) -> None:
        """Write the state where it is kept; what cannot be written is said once."""
        if not self.run.resumable:
            return
        state = self.run.state
        if state.reached < self._best:
            return  # stopped while weights moved: what is on disk is further
        started = time.monotonic()
        if any(self._write(state)):
            self._best = state.reached
        self._last = time.monotonic()
        self._pause = max(self.every, (self._last - started) / SHARE)

    def _write(self, state: RunState) -> tuple[bool, bool]:
        """Write a state to the file and to the store; tells which of them has it now."""
        file, store, digests = self.file, self.store, self._digests
        in_file = file is not None and self._try(lambda: save_state(state, file.path, digests))
        in_store = store is not None and self._try(lambda: store.keep(self._key, state, digests))
        return in_file, in_store

    def _try(self, write: Callable[[], object]) -> bool:
        try:
            write()
        except OutputError as error:
            if not self._told:
                self.say(f"the run's state is not kept: {error}")
            self._told = True
            return False
        return True

    def _open(self, store: RunStore) -> None:
        try:
            store.check()
        except OutputError as error:
            self.say(f"runs are not kept, for the run store cannot be used: {error}")
            self.store = None
            return
        self._key = self.run.key
        with contextlib.suppress(OSError):
            self._made = make_folder(store.folder)
        lock = store.lock(self._key)
        if lock.take():
            self._lock = lock
            return
        self.say("the same run is at work in another process; this one is not kept")
        self.store = None

    def _keep_finished(self) -> None:
        _, in_store = self._write(self.run.state.without_recording())
        if in_store:
            self._drop()

    def _drop(self) -> None:
        if self.store is not None:
            self.store.drop(self._key, STATE)

    def _say_where(self) -> None:
        if self._best[0] < 0:
            self.say("stopped before there was anything to keep")
            return
        share = self.run.behind(self.run.state) if self.run.resumable else 0.0
        places = [str(self.file.path)] if self.file else ["the run store"]
        self.say(
            f"stopped at {share:.0%}; what was done is kept in {places[0]}, and the same run goes "
            "on from there"
        )

    @property
    def kept(self) -> bool:
        """Tell whether the finished run is in the store, to be taken over by the next."""
        return self.store is not None and self.store.path(self._key, FINISHED).is_file()


def save_or_rescue(diff: WeightDiff, path: Path, store: RunStore | None) -> None:
    """Save a diff; what cannot be written there is written elsewhere, and OutputError says where.

    For diffs that took work: they are not lost to a full disk or a share that went away.
    """
    try:
        save_diff(diff, path)
        return
    except OutputError as error:
        told = error
    folders = [store.folder / UNSAVED] if store is not None else []
    for folder in (*folders, Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            place = _free_name(folder / path.name)
            save_diff(diff, place)
        except (OutputError, OSError):
            continue
        raise OutputError(f"{told}; nothing is lost: the diff is in {place}, copy it from there")
    raise OutputError(f"{told}; it could not be saved anywhere else either") from told


def _free_name(path: Path) -> Path:
    number, free = 2, path
    while os.path.lexists(free):
        free, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return free
