"""The tables in the docs are what the figures say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import results

PAGES = results.pages()


@pytest.mark.parametrize("page", PAGES, ids=[p.stem for p in PAGES])
def test_tables_are_what_the_figures_say(page: Path) -> None:
    text = page.read_text("utf-8")
    assert results.filled(text) == text, "run python -m bench.results"


def test_every_table_is_shown_somewhere() -> None:
    shown = [m["name"] for page in PAGES for m in results.TABLE.finditer(page.read_text("utf-8"))]
    assert set(shown) == set(results.makers())


def test_a_figure_that_changed_changes_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = json.loads((results.ROOT / results.STORE).read_text("utf-8"))
    figure = cells["default/gun/0"]["figures"]["target"]
    figure["value"] = 1 - figure["value"]
    store = tmp_path / "engine.json"
    store.write_text(json.dumps(cells))
    before = results.makers()["kinds: single"]()
    monkeypatch.setattr(results, "STORE", store)
    changed = results.makers()["kinds: single"]().splitlines()
    rows = zip(before.splitlines(), changed, strict=True)
    assert [i for i, (a, b) in enumerate(rows) if a != b] == [2], "gun's row alone"


def test_a_table_that_nothing_makes_is_named() -> None:
    with pytest.raises(SystemExit, match="no table is called 'speed'"):
        results.filled("<!-- table speed -->\nold\n<!-- /table -->")


def test_relearning_is_shown_step_by_step_where_all_steps_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asr = {str(n): {"value": n / 100, "n": 100, "low": 0, "high": 1} for n in (5, 10, 20, 50, 100)}
    named = {"relearning" if n == "20" else f"relearning_{n}": {"asr": r} for n, r in asr.items()}
    folder = tmp_path / "rivals" / "gun" / "0"
    folder.mkdir(parents=True)
    for method, attacks in (("uce", named), ("esd-x", {"relearning": {"asr": asr["20"]}})):
        (folder / f"{method}.json").write_text(
            json.dumps({"seed": 0, "figures": {}, "attacks": attacks})
        )
    monkeypatch.setattr(results, "FIGURES", tmp_path)
    (row,) = results.curves("gun").splitlines()[2:]
    assert row.startswith("| UCE | all weights | 1 | 0.050 ")
    assert [part.split()[0] for part in row.split(" | ")[3:]] == [
        "0.050", "0.100", "0.200", "0.500", "1.000",
    ]  # fmt: skip
