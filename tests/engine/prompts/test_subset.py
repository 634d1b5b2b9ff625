"""The one way to take a part of all that could be written: evenly spread."""

from __future__ import annotations

from collections import Counter

import pytest

from trust_engine.prompts.subset import deal


def test_rows_take_options_in_turn() -> None:
    assert deal("abc", 4) == [("a",), ("b",), ("c",), ("a",)]
    assert deal("abcde", 3, 2, turn=2, step=3) == [("a", "d"), ("c", "a"), ("e", "c")]
    assert deal("ab", 0, 3) == []


@pytest.mark.parametrize(
    ("count", "each", "turn", "step"), [(6, 3, 5, 1), (8, 6, 1, 3), (7, 2, 3, 2)]
)
def test_all_options_are_met_equally_often_and_none_twice_in_a_row(
    count: int, each: int, turn: int, step: int
) -> None:
    rows = deal(range(count), 4 * count, each, turn, step)
    assert set(Counter(option for row in rows for option in row).values()) == {4 * each}
    assert all(len(set(row)) == each for row in rows)
