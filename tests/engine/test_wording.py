"""Lists in words: a few of many, evenly drawn, none twice; sizes in a fitting unit."""

from __future__ import annotations

from trust_engine.frontend.wording import sized, some


def test_few_are_spelled_out_and_none_twice() -> None:
    assert some(["a", "b", "a"]) == "a, b"
    assert some("abcdefg", 6) == "a, b, c, d, e, f, g"  # "and 1 more" would be no shorter
    assert some([]) == ""


def test_of_many_some_are_shown_and_the_rest_counted() -> None:
    assert some([str(n) for n in range(25)], 5) == "0, 5, 10, 15, 20 and 20 more"


def test_a_size_is_given_in_the_unit_that_shows_it() -> None:
    assert [sized(n) for n in (33 * 2**20, 2**30 - 2**20, 2**30, 1.25 * 2**30)] == [
        "33 MB", "1023 MB", "1.0 GB", "1.2 GB",
    ]  # fmt: skip
