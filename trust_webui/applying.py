"""Diffs at generation: load, check, and stop what would go on without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from modules import shared

from trust_engine.diff import WeightDiff, load_diff, payload_sha256
from trust_engine.diff.apply import check_base, check_family
from trust_engine.diff.base_model import refuse_again
from trust_engine.errors import DiffError, TrustError
from trust_engine.models.checkpoint import record_of

from . import folders
from .asked_diffs import SHORT, Wanted
from .host import NOT_APPLIED, Host, Part
from .one_line import one_line

INFOTEXT = "TRUST diffs"
_known: dict[tuple[str, int, int], tuple[WeightDiff, str]] = {}


@dataclass
class Applied:
    """The diffs of one generation, checked, and what there is to say about them."""

    parts: list[Part] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Refusal:
    """Stands where the host would go on: whatever it does with it raises the reason.

    Errors of a script's hooks are swallowed by the host; those of its own steps are not.
    """

    def __init__(self, reason: str) -> None:
        self.__dict__["_reason"] = reason

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self()

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise DiffError(self.__dict__["_reason"])

    def __iter__(self) -> NoReturn:
        self()

    def __getitem__(self, _: Any) -> NoReturn:
        self()

    def __len__(self) -> NoReturn:
        self()


def load(name: str) -> tuple[WeightDiff, str]:
    """Load a diff of the folder and its hash, once for each file as it is."""
    path = folders.found(name)
    status = path.stat()
    key = (str(path), status.st_mtime_ns, status.st_size)
    if key not in _known:
        diff = load_diff(path)
        while len(_known) >= 8:
            _known.pop(next(iter(_known)))
        _known[key] = (diff, payload_sha256(diff))
    return _known[key]


def prepare(host: Host, wanted: Sequence[Wanted]) -> Applied:
    """Load and check diffs for the loaded checkpoint; raises TrustError for one that cannot go."""
    done = Applied()
    for one in wanted:
        diff, sha = load(one.name)
        if one.sha and not sha.startswith(one.sha):
            raise DiffError(
                f"{one.name}: has hash {sha[:SHORT]}, the picture's parameters name {one.sha}: "
                "another diff of the same name; choose the file anew if you mean this one"
            )
        if any(part.sha == sha for part in done.parts):
            raise DiffError(f"{one.name}: the same diff is on twice; raise its strength instead")
        done.parts.append(Part(one.name, sha, diff, one.strength))
    check(host, done)
    return done


def check(host: Host, done: Applied) -> None:
    """Raise DiffError unless all diffs go on the loaded checkpoint; collect warnings."""
    shapes, strict = host.shapes, bool(getattr(shared.opts, "trust_strict", False))
    done.warnings.clear()
    host.check_unpacked()
    for part in done.parts:
        check_family(part.diff, shapes, part.name)
    inside = _inside(host.checkpoint)
    for part in done.parts:
        if refuse_again(inside, part.diff, part.strength, part.name, "the checkpoint"):
            continue  # its strength takes back what is there
        prediction = host.schedule.prediction
        told = check_base(part.diff, host.fingerprint(), part.name, strict, prediction)
        if told:
            done.warnings.append(told)


def _inside(checkpoint: Path) -> dict[str, Any]:
    """Read which diffs are in a checkpoint already, once for each file as it is."""
    try:
        return _record(checkpoint, checkpoint.stat().st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=4)
def _record(checkpoint: Path, changed: int) -> dict[str, Any]:
    return record_of(checkpoint)


def refuse_refiner(p: Any) -> None:
    """Raise DiffError for a generation that changes models halfway, where no diff would follow."""
    refiner = getattr(p, "refiner_checkpoint_info", None)
    if refiner is not None and (getattr(p, "refiner_switch_at", None) or 1.0) < 1.0:
        raise DiffError("the refiner takes over during sampling, and the diffs would not reach it; "
                        "switch Refiner off, or the diffs")  # fmt: skip


def stop(p: Any, error: Exception) -> str:
    """Make sure that a generation ends with the reason instead of a picture."""
    told = one_line(error).removeprefix(f"{NOT_APPLIED}: ")
    if not isinstance(error, TrustError):
        told += f" ({type(error).__name__})"
    reason = f"{NOT_APPLIED}: {told}"
    refusal = Refusal(reason)
    p.sample = refusal
    p.sampler = refusal
    return reason
