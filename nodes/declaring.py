"""How a node declares itself: what it takes and gives, one line each, never without a tooltip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

CATEGORY = "TRUST"
Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class Output:
    """One socket: its name, what kind of thing it gives, and the tooltip."""

    name: str
    kind: str
    tooltip: str


def node(
    method: str, ends: bool = False, shown_again: bool = False, hidden: tuple[str, ...] = ()
) -> Callable[[Class], Class]:
    """Give a class what the host reads of a node; method: what is called.

    Inputs are the class's REQUIRED and OPTIONAL; one whose choices change while the host runs has
    its own INPUT_TYPES. Outputs are its GIVES. ends: the host runs it though nothing is connected
    behind; shown_again: recent hosts show what it said once more when nothing has to be done;
    hidden: what the host itself adds, such as unique_id.
    """
    flags = {
        "CATEGORY": CATEGORY,
        "FUNCTION": method,
        **({"OUTPUT_NODE": True} if ends else {}),
        **({"HAS_INTERMEDIATE_OUTPUT": True} if shown_again else {}),
    }

    def taken(made: Any) -> dict[str, Any]:
        groups = ("REQUIRED", "OPTIONAL")
        read = {name.lower(): dict(getattr(made, name)) for name in groups if hasattr(made, name)}
        return read | ({"hidden": {name: name.upper() for name in hidden}} if hidden else {})

    def declare(made: Class) -> Class:
        outputs: tuple[Output, ...] = made.GIVES  # type: ignore[attr-defined]
        read: dict[str, Any] = {
            **flags,
            "RETURN_TYPES": tuple(output.kind for output in outputs),
            "RETURN_NAMES": tuple(output.name for output in outputs),
            "OUTPUT_TOOLTIPS": tuple(output.tooltip for output in outputs),
        }
        for name, value in read.items():
            setattr(made, name, value)
        if not hasattr(made, "INPUT_TYPES"):
            made.INPUT_TYPES = classmethod(taken)  # type: ignore[attr-defined]
        return made

    return declare
