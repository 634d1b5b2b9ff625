"""Lists in words: a few of many, evenly drawn, none twice."""

from __future__ import annotations

from trust_engine.frontend.wording import some


def test_few_are_spelled_out_and_none_twice() -> None:
    assert some(["a", "b", "a"]) == "a, b"
    assert some("abcdefg", 6) == "a, b, c, d, e, f, g"  # "and 1 more" would be no shorter
    assert some([]) == ""


def test_of_many_some_are_shown_and_the_rest_counted() -> None:
    assert some([str(n) for n in range(25)], 5) == "0, 5, 10, 15, 20 and 20 more"
