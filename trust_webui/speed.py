"""How fast the loaded checkpoint is on this machine: timed once for each size, then remembered."""

from __future__ import annotations

from typing import Any

from trust_engine.models.contract import LentModel
from trust_engine.spec import CHOICES
from trust_engine.unlearn.estimate import Speed, pass_seconds, step_seconds

from .host import Host
from .jobs import Job

KEPT = 8  # checkpoints and sizes that are remembered
_known: dict[Any, Speed] = {}


def known(host: Host, resolution: int) -> Speed | None:
    """Return what has been timed before; None when it has not, or when no model is loaded."""
    return _known.get(_key(host, resolution)) if host.ready else None


def timed(job: Job, host: Host, lent: LentModel, resolution: int) -> Speed:
    """Return what is known, and time it first if need be; within `borrowed`."""
    key = _key(host, resolution)
    if key not in _known:
        job.tick(1, 3, "timing a UNet pass")
        one = pass_seconds(lent)
        job.tick(2, 3, "timing a training step")
        step = {kind: step_seconds(lent, kind) for kind in CHOICES["objective"]}
        while len(_known) >= KEPT:
            _known.pop(next(iter(_known)))
        _known[key] = Speed(one, step)
    return _known[key]


def correct(host: Host, resolution: int, factor: float) -> None:
    """Scale what was timed by what a whole run took of it: a moment may have been a busy one."""
    speed = known(host, resolution)
    if speed is None:  # another checkpoint was chosen meanwhile
        return
    step = {kind: factor * spent for kind, spent in speed.step.items()}
    _known[_key(host, resolution)] = Speed(factor * speed.one, step)


def _key(host: Host, resolution: int) -> Any:
    return (*host.identity, resolution)
