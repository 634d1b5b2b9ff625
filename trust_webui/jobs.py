"""Long work, one piece at a time: under the host's queue lock, with its progress and interrupt."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from modules import call_queue, devices, shared

from trust_engine.errors import TrustError

from .host import current

log = logging.getLogger(__name__)
KEPT = 20  # jobs that are remembered
ESTIMATE = "expect"  # the kind of job that only times the checkpoint
OVER = ("done", "failed", "stopped")


class Stopped(Exception):
    """The user stopped the job."""


@dataclass
class Job:
    """A piece of work: where it stands, what it said, and what came of it.

    state: queued, running, done, failed or stopped; done, total: units of its own; curves: for
    each piece that is trained (effect, harm) after every step; result: its own kind's.
    """

    kind: str
    title: str
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    state: str = "queued"
    stage: str = "waiting for the host"
    done: int = 0
    total: int = 0
    message: str = ""
    said: list[str] = field(default_factory=list)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    result: Any = None
    created: float = field(default_factory=time.time)
    started: float = 0.0
    ended: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def over(self) -> bool:
        """Tell whether it has come to an end, good or bad."""
        return self.state in OVER

    @property
    def seconds(self) -> float:
        """Tell how long it has run."""
        return (self.ended or time.time()) - self.started if self.started else 0.0

    @property
    def left(self) -> float | None:
        """Estimate the seconds that are left; None before there is anything to go by."""
        if self.state != "running" or not self.done or not self.total:
            return None
        return self.seconds / self.done * max(0, self.total - self.done)

    @property
    def progress(self) -> float:
        """Tell how far it has come, 0 to 1."""
        if self.state == "done":
            return 1.0
        return round(self.done / self.total, 4) if self.total else 0.0

    def stop(self) -> None:
        """Ask it to stop: it does within one step, or is never begun."""
        self._stop.set()

    def tick(self, done: int, total: int, stage: str) -> None:
        """Note progress; raises Stopped when the user has asked for it, here or in the host."""
        self.done, self.total, self.stage = done, total, stage
        state = shared.state
        state.sampling_step, state.sampling_steps = done, max(1, total)
        state.textinfo = f"TRUST: {stage}"
        self.check()

    def check(self) -> None:
        """Raise Stopped when the user has asked for it."""
        state = shared.state
        if self._stop.is_set() or state.interrupted or getattr(state, "stopping_generation", False):
            raise Stopped

    def to_dict(self) -> dict[str, Any]:
        """Spell out what others may know of it."""
        told = {
            "id": self.id,
            "kind": self.kind,
            "title": self.title,
            "state": self.state,
            "stage": self.stage,
            "progress": self.progress,
            "seconds": round(self.seconds, 1),
            "seconds_left": None if self.left is None else round(self.left),
            "message": self.message,
            "said": list(self.said),
        }
        summary = getattr(self.result, "to_dict", None)
        return {**told, "result": summary() if summary and self.state == "done" else None}


Work = Callable[[Job], Any]


class Jobs:
    """All jobs of this server."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self, kind: str, title: str, work: Work) -> Job:
        """Begin a job in a thread of its own; it waits for its turn there."""
        job = Job(kind, title)
        with self._lock:
            over = [old.id for old in self._jobs.values() if old.over]
            for identity in over[: max(0, len(self._jobs) + 1 - KEPT)]:
                del self._jobs[identity]
            self._jobs[job.id] = job
        threading.Thread(target=run, args=(job, work), name=f"trust-{job.id}", daemon=True).start()
        return job

    def get(self, identity: str) -> Job | None:
        """Return a job, None for one that is not known, or no longer."""
        return self._jobs.get(identity)

    def all(self) -> list[Job]:
        """List the jobs, the oldest first."""
        return list(self._jobs.values())

    def latest(self, kind: str = "") -> Job | None:
        """Return the youngest job, of a kind if one is given; estimates only when asked for."""
        fitting = [j for j in self.all() if (j.kind == kind if kind else j.kind != ESTIMATE)]
        return fitting[-1] if fitting else None

    def stop_all(self) -> None:
        """Ask all jobs to stop."""
        for job in self.all():
            job.stop()


JOBS = Jobs()


def run(job: Job, work: Work) -> None:
    """Do the work when it is its turn; whatever happens ends in the job's state."""
    try:
        with call_queue.queue_lock, _turn(job):
            job.check()
            job.result = current().on_its_thread(lambda: work(job))
        job.state, job.stage = "done", "done"
    except Stopped:
        job.state, job.message = "stopped", "stopped; the model is as it was"
    except TrustError as error:
        job.state, job.message = "failed", " ".join(str(error).split())
    except Exception as error:
        log.exception("TRUST job %s (%s) failed", job.id, job.title)
        job.state, job.message = "failed", _unforeseen(error)
    job.ended = time.time()


@contextlib.contextmanager
def _turn(job: Job) -> Iterator[None]:
    """Be the host's own job: its progress bar and its Interrupt button are ours meanwhile."""
    state = shared.state
    if job._stop.is_set():
        raise Stopped
    state.begin(job=f"TRUST {job.kind}")
    state.job_count = 1
    job.started, job.state, job.stage = time.time(), "running", "getting ready"
    try:
        yield
    finally:
        state.end()
        state.interrupted = state.skipped = False
        if hasattr(state, "stopping_generation"):
            state.stopping_generation = False
        state.textinfo = None
        devices.torch_gc()


def _unforeseen(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        return (
            f"out of memory ({text}): lower the resolution, choose engine local, or close other "
            "programs that use the GPU. The model is as it was"
        )
    return f"{type(error).__name__}: {text}. The model is as it was; the console says more"
