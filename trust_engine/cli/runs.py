"""The command `runs`, and how a command that runs for long is stopped without losing anything."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from ..settings import RUNS as SETTING
from .flags import add_command

if TYPE_CHECKING:
    from ..unlearn.run_store import RunStore

Report = TypeVar("Report")
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # those that a system has


def say(text: str) -> None:
    """Say something beside the result."""
    print(f"trust_engine: {' '.join(text.split())}", file=sys.stderr)


def add_store(parser: argparse.ArgumentParser) -> None:
    """Declare `--no-runs`."""
    parser.add_argument(
        "--no-runs",
        action="store_true",
        help="neither go on with an earlier run of the same inputs nor keep this one "
        f"(as {SETTING}=off in the environment; see the command runs)",
    )


def open_store(args: argparse.Namespace) -> RunStore | None:
    """Open the user's run store unless it is not wanted; says when there is no place for one."""
    from ..unlearn.run_store import is_off, user_folder, user_store

    if args.no_runs or is_off():
        return None
    if user_folder() is None:
        say(f"runs are not kept: there is no home folder; name a folder in {SETTING}")
    return user_store()


def add_runs(commands: Any) -> None:
    """Declare `runs`."""
    parser = add_command(
        commands, "runs", "show what is kept of earlier runs, or clear it",
        "A run of unlearn or demo, or an audit, is kept while it works: stopped, by "
        "whatever, it goes on when it is started again with the same inputs. A finished one is not "
        f"computed again. {SETTING}=off switches this off, {SETTING}=FOLDER keeps runs elsewhere, "
        f"{SETTING}_GB=N bounds their size (default: 10).",
    )  # fmt: skip
    parser.add_argument("--clear", action="store_true", help="remove all that is kept")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_runs)


def _runs(args: argparse.Namespace) -> None:
    from ..unlearn.run_store import is_off, user_store

    store = user_store()
    if store is None:
        why = f"{SETTING} is off" if is_off() else f"no home folder; name one in {SETTING}"
        print(json.dumps({"folder": None}) if args.json else f"runs are not kept: {why}")
        return
    found = store.clear() if args.clear else store.contents
    told = {"folder": str(store.folder), "finished": found.finished,
            "stopped": found.stopped, "audit_parts": found.cells, "bytes": found.size}  # fmt: skip
    done = "removed" if args.clear else "kept"
    print(json.dumps(told) if args.json else f"{store.folder}: {done} {found}")


class Stopping:
    """Let signals end a run between two of its steps, where nothing of it is lost.

    The first one asks for that. A second Ctrl-C ends the step under way; while what was done is
    being saved, further ones change nothing.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._ending = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
                if signal.getsignal(number) is not signal.SIG_IGN:  # such as under nohup
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def between(self, reports: Iterable[Report]) -> Iterator[Report]:
        """Hand reports on; raises KeyboardInterrupt or SystemExit between two when asked to."""
        for report in reports:
            yield report
            if self._asked and not self._ending:
                self._end()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self._asked == signal.SIGINT == number
        self._asked = self._asked or number
        if again and not self._ending:
            self._end()
        elif not again:  # by the descriptor: Python's own stream may be in the middle of a line
            with contextlib.suppress(OSError):
                os.write(2, b"\ntrust_engine: stopping after this step; what is done is kept\n")

    def _end(self) -> None:
        self._ending = True
        if self._asked == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self._asked)
