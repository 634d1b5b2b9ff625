"""The engine's bench: the same pictures for every concept, and no figure of another engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench import engine
from bench.measure import groups
from bench.trained_diffs import CONCEPTS, EVERY, HELD_OUT, by_chance


def test_other_objects_are_drawn_alike_whatever_the_concept() -> None:
    gun, cat = (set(groups(CONCEPTS[name], 24, 0)["others"]) for name in ("gun", "cat"))
    assert len(gun) == len(cat) == 2 * 27
    assert {s.words for s in gun - cat} == {"cat"}
    assert {s.words for s in cat - gun} == {"gun"}


@pytest.mark.parametrize("name", EVERY)
def test_no_picture_is_drawn_twice_and_none_of_the_others_shows_the_concept(name: str) -> None:
    found = groups(EVERY[name], 24, 1)
    seeds = [shot.seed for shots in found.values() for shot in shots]
    assert len(set(seeds)) == len(seeds)
    assert not any(EVERY[name].words[0] in shot.scene.objects for shot in found["others"])


def test_a_held_out_cell_is_no_other_tables_and_outlives_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not HELD_OUT.keys() & CONCEPTS.keys()
    monkeypatch.setattr(engine, "fingerprint", lambda _: "base")
    model: Any = SimpleNamespace(denoiser=None)
    stamp = engine.stamp(model, "fluent", 0, 24, "default")
    cells = {"default/fluent/0": {"stamp": stamp}, "default/no such thing/0": {"stamp": stamp}}
    assert list(engine.valid(cells, model, 24)) == ["default/fluent/0"]


def test_what_was_drawn_by_chance_stays_drawn() -> None:
    drawn = by_chance()
    pairs = ["bird+snowman", "airplane+fish", "clock+umbrella"]
    assert list(drawn) == ["airplane", "guitar", "fish", *pairs]
    assert not drawn.keys() & EVERY.keys()


def test_a_cell_of_another_engine_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "fingerprint", lambda _: "base")
    model: Any = SimpleNamespace(denoiser=None)
    cells = {
        "untouched/gun/0": {"stamp": engine.stamp(model, "gun", 0, 12, None)},
        "default/gun/0": {"stamp": engine.stamp(model, "gun", 0, 12, "default")},
    }
    assert engine.valid(cells, model, 12) == cells
    assert engine.valid(cells, model, 24) == {}
    monkeypatch.setattr(engine, "engine_mark", lambda: "another")
    assert list(engine.valid(cells, model, 12)) == ["untouched/gun/0"]


def test_the_table_pools_what_is_gone_and_tells_how_far_seeds_lie_apart() -> None:
    def rate(value: float) -> dict[str, Any]:
        return {"value": value, "n": 24, "low": 0.0, "high": 1.0}

    made = {"effect": 0.3, "harm": 0.01, "changed": 0.03, "passes": 640}
    cells = {
        "untouched/gun/0": {"figures": {"target": rate(1.0), "others": rate(0.5)}},
        "untouched/gun/1": {"figures": {"target": rate(1.0), "others": rate(1.0)}},
        "default/gun/0": {**made, "figures": {"target": rate(0.0), "others": rate(0.5)}},
        "default/gun/1": {
            **made, "effect": 0.5, "figures": {"target": rate(0.25), "others": rate(0.5)}
        },
    }  # fmt: skip
    row = engine.table(cells, ["gun"], ["default", "CIP"]).splitlines()[-1]
    # 42 of 48 pictures are without it; Wilson's interval of that.
    assert "| gun | default | 2 | 0.875 (0.75-0.94) | 0.750 (0.50-1.00) |" in row
    assert "| 0.400 (0.300-0.500) | 0.010 (0.010-0.010) | 3.00% | 640 |" in row
