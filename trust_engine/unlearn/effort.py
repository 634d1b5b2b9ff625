"""One dial for how long to train: a spec for those who do not want to know of steps."""

from __future__ import annotations

from ..errors import SpecError
from ..spec import DEFAULTS

EFFORTS = {"quick": 1 / 3, "normal": 1.0, "thorough": 2.5}  # times the spec's steps


def steps_of(effort: str) -> int:
    """Return the steps of an effort; raises SpecError for an unknown one."""
    if effort not in EFFORTS:
        raise SpecError(f"effort {effort!r} is unknown; use one of {', '.join(EFFORTS)}")
    return round(DEFAULTS["steps"] * EFFORTS[effort])
