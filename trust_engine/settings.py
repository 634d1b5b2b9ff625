"""What a setting may be and what it means: one table that checks, flags, nodes and tabs read.

A field of `UnlearnSpec` is declared by `number`, `choice` or `switch`; `settings_of` lists them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from .errors import SpecError

Kind = Literal["number", "whole number", "choice", "switch"]


RUNS = "TRUST_RUNS"
"""Environment variable that says where runs are kept: off, or a folder."""


@dataclass(frozen=True)
class Setting:
    """A setting for people: its bounds or options, and its meaning in a sentence or two.

    low, high: what is accepted; step: of a dial; usual: the part of it that a slider shows;
    label: its name where there is room for words; flag: whether the command line has it.
    """

    kind: Kind
    help: str
    default: Any = None
    label: str = ""
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    usual: tuple[float, float] | None = None
    options: tuple[str, ...] = ()
    flag: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise SpecError naming the setting for a value that it cannot have."""
        if self.kind == "switch":
            if not isinstance(value, bool):
                raise SpecError(f"must be true or false, not {value!r}", field=name)
        elif self.kind == "choice":
            if value not in self.options:
                options = f"use one of {', '.join(self.options)}"
                raise SpecError(f"{value!r} is unknown", field=name, remedy=options)
        else:
            in_range(name, value, self.low, self.high, self.kind == "whole number")


def number(default: float, low: float, high: float, step: float, help: str, **more: Any) -> Any:
    """Declare a number in low..high; a whole one if its default is."""
    kind: Kind = "whole number" if isinstance(default, int) else "number"
    return _field(Setting(kind, help, default, low=low, high=high, step=step, **more))


def choice(default: str, options: tuple[str, ...], help: str, **more: Any) -> Any:
    """Declare a choice."""
    return _field(Setting("choice", help, default, options=options, **more))


def switch(default: bool, help: str, **more: Any) -> Any:
    """Declare a yes or no."""
    return _field(Setting("switch", help, default, **more))


def _field(setting: Setting) -> Any:
    return dataclasses.field(default=setting.default, metadata={"setting": setting})


def settings_of(cls: type) -> dict[str, Setting]:
    """Return the settings of a dataclass by name, in its order."""
    fields = dataclasses.fields(cls)
    return {f.name: f.metadata["setting"] for f in fields if "setting" in f.metadata}


def in_range(name: str, value: float, low: float, high: float, whole: bool = False) -> None:
    """Raise SpecError naming the setting unless value is a number in low..high."""
    allowed = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        kind = "whole number" if whole else "number"
        raise SpecError(f"must be a {kind}, not {value!r}", field=name)
    if not low <= value <= high:
        raise SpecError(f"is {value}; it must lie between {low:g} and {high:g}", field=name)
