"""Plots of the benchmark: figures find their place."""

from __future__ import annotations

import numpy as np
import pytest

from bench.plots import INKS, drawn, series


def cell(target: float, others: float) -> dict:
    return {"figures": {"target": {"value": target}, "others": {"value": others}}}


CELLS = {
    "untouched/gun/0": cell(0.9, 0.8),
    "untouched/gun/1": cell(1.0, 1.0),
    "default/gun/0": cell(0.1, 0.8),
    "default/gun/1": cell(0.3, 0.5),
    "budget 0.1/gun/0": cell(0.0, 0.4),
}


def test_series_are_means_over_seeds_relative_to_the_untouched_model() -> None:
    found = series(CELLS, "gun", ("budget 0.01", "default"))
    assert found["target"] == [None, pytest.approx(0.8)]
    assert found["others"] == [None, pytest.approx(0.75)]


def test_a_line_is_drawn_over_the_seeds_that_all_of_it_has() -> None:
    found = series(CELLS, "gun", ("budget 0.01", "default", "budget 0.1"))
    assert found["target"] == [None, pytest.approx(0.9), 1.0]
    assert found["others"] == [None, pytest.approx(1.0), pytest.approx(0.5)]


def test_a_higher_value_stands_higher_and_each_line_has_its_ink() -> None:
    picture = np.asarray(drawn("t", ("a", "b"), {"one": [1.0, 1.0], "two": [0.5, 0.5]}))
    rows = [np.argwhere((picture[:, 60:350] == INKS[k]).all(2))[:, 0].mean() for k in (0, 1)]
    assert rows[0] < rows[1]
