"""The one way in which an evenly spread part is taken of all that could be written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Option = TypeVar("Option")


def deal(
    options: Sequence[Option], rows: int, each: int = 1, turn: int = 1, step: int = 1
) -> list[tuple[Option, ...]]:
    """Choose `each` of the options for every row, out of the full product of rows and options.

    Row i takes the options i turn, i turn + step, i turn + 2 step, ..., counted round and round.
    With a turn that shares no factor with their number, every option is met equally often, to
    within one, over the rows; a row takes none twice while each <= len(options) and step shares
    no factor with their number.
    """
    count = len(options)
    return [tuple(options[(i * turn + j * step) % count] for j in range(each)) for i in range(rows)]
