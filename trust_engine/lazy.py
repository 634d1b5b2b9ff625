"""Names that a package hands on, imported when one is asked for: torch alone takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def handed_on(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a package's `__getattr__`; home: the module, seen from it, that defines each name."""

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{home[name]}", package), name)

    return get
