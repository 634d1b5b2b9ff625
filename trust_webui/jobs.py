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
from .one_line import TITLE, one_line

log = logging.getLogger(__name__)
KEPT = 20  # jobs that are remembered
ESTIMATE = "expect"  # the kind of job that only times the checkpoint
PROMPTS = "prompts"  # the kind that only lists the prompts of a run
OVER = ("done", "failed", "stopped")
PROGRAM = "program"  # the owner of what is begun by the API; else it is one page's own token


class Stopped(Exception):
    """The user stopped the job."""


@dataclass(eq=False)
class Job:
    """A piece of work: where it stands, what it said, and what came of it.

    state: queued, running, done, failed or stopped; done, total: units of its own; curves: for
    each piece that is trained (effect, harm) after every step; result: its own kind's; owner: the
    page that began it, or PROGRAM.
    """

    kind: str
    title: str
    owner: str = ""
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
    _moving: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.title = one_line(self.title, TITLE)

    @property
    def over(self) -> bool:
        """Tell whether it has come to an end, good or bad."""
        return self.state in OVER

    @property
    def stopping(self) -> bool:
        """Tell whether it runs and has been asked to stop."""
        return self.state == "running" and self._stop.is_set()

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
        """Stop it: at once while it waits for its turn, within one step while it runs."""
        self._stop.set()
        with self._moving:
            if self.state == "queued":
                self.state, self.stage = "stopped", "stopped"
                self.message, self.ended = "stopped before it began", time.time()

    def begin(self) -> None:
        """Note that it is its turn; raises Stopped when it has been stopped."""
        with self._moving:
            if self._stop.is_set():
                raise Stopped
            self.started, self.state, self.stage = time.time(), "running", "getting ready"

    def end(self, state: str, message: str = "") -> None:
        """Note how it ended, unless it had ended before."""
        with self._moving:
            if not self.over:
                self.stage, self.message, self.ended = state, message, time.time()
                self.state = state

    def at(self, stage: str) -> None:
        """Name what it does now; raises Stopped when the user has asked for it."""
        self.stage = stage
        self.check()

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
            "owner": PROGRAM if self.owner == PROGRAM else "page",
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

    def start(self, kind: str, title: str, work: Work, owner: str = "") -> Job:
        """Begin a job in a thread of its own; it waits for its turn there."""
        job = Job(kind, title, owner)
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
        with self._lock:
            return list(self._jobs.values())

    def latest(self, kind: str = "", owner: str = "") -> Job | None:
        """Return the youngest job, of a kind and an owner if given; estimates only if asked for."""
        fitting = [
            job for job in self.all()
            if (job.kind == kind if kind else job.kind != ESTIMATE)
            and (not owner or job.owner == owner)
        ]  # fmt: skip
        return fitting[-1] if fitting else None

    def before(self, job: Job) -> int:
        """Count the jobs that are to be done before a queued one."""
        listed = self.all()
        place = listed.index(job) if job in listed else len(listed)
        return sum(not other.over for other in listed[:place])

    def runs(self, owner: str, *kinds: str) -> list[Job]:
        """Return what an owner has begun of these kinds and what is not over."""
        return [job for job in self.all()
                if owner and job.owner == owner and job.kind in kinds and not job.over]  # fmt: skip

    def stop(self, owner: str, *kinds: str) -> list[Job]:
        """Stop what an owner has begun of these kinds; nobody else's. Returns what was stopped."""
        mine = self.runs(owner, *kinds)
        for job in mine:
            job.stop()
        return mine

    def stop_all(self) -> None:
        """Ask all jobs to stop, for the host closes."""
        for job in self.all():
            job.stop()


JOBS = Jobs()


def run(job: Job, work: Work) -> None:
    """Do the work when it is its turn; whatever happens ends in the job's state."""
    try:
        with call_queue.queue_lock, _turn(job):
            job.check()
            job.result = current().on_its_thread(lambda: work(job))
        job.end("done")
    except Stopped:
        job.end("stopped", "stopped; the model is as it was")
    except TrustError as error:
        job.end("failed", one_line(error))
    except Exception as error:
        log.exception("TRUST job %s (%s) failed", job.id, job.title)
        job.end("failed", one_line(_unforeseen(error)))


@contextlib.contextmanager
def _turn(job: Job) -> Iterator[None]:
    """Be the host's own job: its progress bar and its Interrupt button are ours meanwhile."""
    state = shared.state
    job.begin()
    state.begin(job=f"TRUST {job.kind}")
    state.job_count = 1
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
