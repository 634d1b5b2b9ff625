"""Processes that share one job, as `accelerate launch` and `torchrun` start them.

All of them run the same program and hold the same model; each does its share of the work and
gets to know what the others found. They talk over gloo, in main memory, whatever the device.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from .errors import SpecError

Value = TypeVar("Value")
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MEETING = timedelta(minutes=1)  # to find one another
WORD_AFTER, LATER = 3.0, 10.0  # seconds without the others: process 0 says it first
PATIENCE = timedelta(days=7)  # process 0 may work alone for as long as a job takes


@dataclass(frozen=True)
class Workers:
    """This process's number among `size`; number 0 alone writes files and prints."""

    rank: int = 0
    size: int = 1
    _told: list[Exception] = field(default_factory=list, compare=False)

    @property
    def first(self) -> bool:
        """Tell whether this process writes and prints."""
        return self.rank == 0

    def mine(self, number: int) -> bool:
        """Tell whether the piece of work with this number is this process's."""
        return number % self.size == self.rank

    def gather(self, value: Value) -> list[Value]:
        """Return every process's value, in their order; raises the error one of them met."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        for one in found:
            if isinstance(one, Exception):
                self._told.append(one)
                raise one
        return found

    def tell(self, error: Exception) -> None:
        """Raise this process's error in the others too, unless it came from them."""
        if self.size > 1 and not self._told:
            with contextlib.suppress(Exception):
                self.gather(error)

    def interleave(self, mine: list[Value]) -> list[Value]:
        """Return all pieces of work in order, of which each process brings its own."""
        shares = self.gather(mine)
        count = sum(len(share) for share in shares)
        return [shares[i % self.size][i // self.size] for i in range(count)]

    def unite(self, found: dict[str, Any], order: Sequence[str]) -> None:
        """Add what the others found; `order` names pieces of work, and a key begins with one."""
        if self.size == 1:
            return
        whole = {key: value for part in self.gather(found) for key, value in part.items()}
        place = {name: number for number, name in enumerate(order)}
        found.clear()
        found |= sorted(whole.items(), key=lambda i: place.get(i[0].rsplit(".to_", 1)[0], 0))

    def leave(self, code: int) -> None:
        """End this process when all have heard everything, if there are others.

        A connection that closes early kills its peer, and one that its peer closes while it is
        being taken down may abort the process: so none is taken down, the system closes them.
        """
        if self.size == 1:
            return
        with contextlib.suppress(Exception):  # another may have gone without a word
            self._part()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)

    def _part(self) -> None:
        import torch.distributed as dist

        store, patience = dist.distributed_c10d._get_default_store(), timedelta(seconds=30)
        store.set(f"trust/here/{self.rank}", "")
        store.wait([f"trust/here/{rank}" for rank in range(self.size)], patience)
        if self.first:  # it keeps the store, which must answer the others before it goes
            store.wait([f"trust/gone/{rank}" for rank in range(1, self.size)], patience)
        else:
            store.set(f"trust/gone/{self.rank}", "")

    def of_first(self, value: Value) -> Value:
        """Return process 0's value."""
        return self.gather(value if self.first else None)[0]  # type: ignore[return-value]


SINGLE = Workers()


@contextlib.contextmanager
def joined(say: Callable[[str], None] | None = None) -> Iterator[Workers]:
    """Join the processes that this one was launched with, for one job; alone if with none.

    An error of one process is raised in all of them, where they next meet. Only process 0 prints.
    say: is told what is waited for; raises SpecError when the others are not there in a minute.
    """
    told = {name: os.environ.get(name, "").strip() for name in LAUNCHED}
    if not all(told.values()) or told["WORLD_SIZE"] == "1":
        yield SINGLE
        return
    import torch
    import torch.distributed as dist

    _meet(told, say or (lambda text: None))
    team = Workers(dist.get_rank(), dist.get_world_size())
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0) % torch.cuda.device_count())
    try:
        with contextlib.ExitStack() as stack:
            if not team.first:
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            yield team
    finally:
        dist.destroy_process_group()


def _meet(told: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Form the group, or raise SpecError: variables that an old job left lead nowhere."""
    import torch.distributed as dist

    size, rank = told["WORLD_SIZE"], told["RANK"]
    where = f"{told['MASTER_ADDR']}:{told['MASTER_PORT']}"
    remedy = f"start all of them, or unset {', '.join(LAUNCHED)} to work alone"
    numbers = size.isdecimal() and rank.isdecimal() and told["MASTER_PORT"].isdecimal()
    if not numbers or not int(rank) < int(size):
        raise SpecError(f"RANK is {rank!r} and WORLD_SIZE {size!r} at {where}; {remedy}")
    waiting = f"waiting up to a minute for {int(size) - 1} other processes at {where}; {remedy}"
    timer = threading.Timer(WORD_AFTER if rank == "0" else LATER, say, [waiting])
    timer.daemon = True
    timer.start()
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=MEETING))
        store.set_timeout(PATIENCE)
        dist.init_process_group(
            "gloo", store=store, rank=number, world_size=count, timeout=PATIENCE
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise SpecError(
            f"{int(size) - 1} other processes did not come to {where} within a minute; {remedy}"
        ) from error
    finally:
        timer.cancel()
