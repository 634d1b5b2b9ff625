"""What can go wrong: what is wrong, with which setting, and what to do. Each door words it."""

from __future__ import annotations

import re
from collections.abc import Callable

Named = Callable[[str, str], str]
"""How a door calls a setting, and a value of it: ("memory", "low") -> "--memory low"."""

_SETTING = re.compile(r"\{([a-z_]+)(?: ([^{}]*))?\}")


def plainly(setting: str, value: str) -> str:
    """Call settings as the library does."""
    return f"{setting} {value}".rstrip()


class TrustError(Exception):
    """Base of every error a user can cause or mend; exit_code: what the command line ends with.

    message: what is wrong; field: the setting that is wrong, with whose name the sentence then
    begins; remedy: what to do, in which `{memory low}` stands for setting memory to low. Settings
    are named as in the spec; a door says its own name of them by `worded`.
    """

    exit_code = 2

    def __init__(self, message: object = "", *, field: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.field, self.remedy = field, remedy

    def worded(self, named: Named = plainly) -> str:
        """Say it with a door's names of settings."""
        parts = [named(self.field, "")] if self.field else []
        told = " ".join([*parts, str(self.args[0])])
        remedy = _SETTING.sub(lambda found: named(found[1], found[2] or ""), self.remedy)
        return f"{told}; {remedy}" if remedy else told

    def __str__(self) -> str:
        return self.worded()


class SpecError(TrustError):
    """A concept or setting is missing, contradictory or out of range."""


class ModelError(TrustError):
    """A model file is missing, unsafe, or not one the engine can read."""


class DiffError(TrustError):
    """A diff file is damaged, or belongs to another model."""


class OutputError(TrustError):
    """A result cannot be written where the user wants it."""


class DivergenceError(TrustError):
    """A run failed: its numbers are not finite, or, if strict, it made the concept stronger."""

    exit_code = 3
