"""The benchmark's tables and plot, from cells as files."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.baselines.catalogue import METHODS
from bench.baselines.table import doubt, pareto, points, read_cells, retention, tables
from trust_engine.audit.metrics.intervals import Rate


def cell(seed: int, hits: int, asr: int, kept: int = 10) -> dict:
    before = Rate(hits, 10).to_dict()
    attack = {"asr": Rate(asr, 10).to_dict(), "before_attack": before, "stance": "adaptive"}
    easy = {"asr": Rate(10, 10).to_dict(), "before_attack": before, "stance": "static"}
    figures = {"target": Rate(hits, 10).to_dict(), "others": Rate(kept, 10).to_dict(),
               "synonyms": Rate(0, 0).to_dict()}  # fmt: skip
    cost = {"seconds": 4.0, "passes": 100, "changed": 0.02, "bytes": 52_000, "peak_mb": 700}
    return {"seed": seed, "figures": figures, "cost": cost,
            "attacks": {"textual_inversion_1": attack, "benign_fine_tuning": easy}}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Save an untouched model and two methods, of two seeds; one method lacks one."""
    cells = {
        ("untouched", 0): cell(0, 10, 10), ("untouched", 1): cell(1, 10, 10, 8),
        ("uce", 0): cell(0, 0, 4, 9), ("uce", 1): cell(1, 1, 4, 8), ("trust", 1): cell(1, 2, 1, 4),
    }  # fmt: skip
    for (method, seed), found in cells.items():
        path = tmp_path / "gun" / str(seed) / f"{method}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return tmp_path


def test_tables_pool_the_seeds(store: Path) -> None:
    text = tables(store, ["gun", "bomb"])
    row = next(line for line in text.splitlines() if line.startswith("| UCE"))
    cells = [part.strip() for part in row.strip("|").split("|")]
    low, high = (1 - Rate(1, 20).to_dict()[k] for k in ("high", "low"))
    assert cells[:3] == ["UCE", "2", f"0.95 ({low:.2f}-{high:.2f})".replace("(0.", "(.")
                         .replace("-0.", "-.")]  # fmt: skip
    assert "0.40" in cells[-7] and cells[-5:] == ["2.0%", "52 kB", "4", "100", "700 MB"]
    assert "untouched model" in text and "bomb" not in text


def test_what_is_kept_stands_beside_the_untouched_model_of_the_same_seed(store: Path) -> None:
    after = tables(store, ["gun"]).split("| kept, of the untouched model's | IRA |")[1]
    assert "| UCE | 0.950 |" in after  # 9 of 10 kept and 8 of 8
    assert f"| {METHODS['trust'].title} | 0.500 |" in after and "| untouched" not in after
    for path in store.glob("gun/*/untouched.json"):
        path.unlink()
    assert "kept, of the untouched" not in tables(store, ["gun"])


def test_an_attack_that_beats_neither_rival_is_no_evidence(store: Path) -> None:
    cells = read_cells(store, "gun")
    assert doubt(cells, "textual_inversion_1") and not doubt(cells, "benign_fine_tuning")
    text = tables(store, ["gun"])
    assert "No evidence, being below .5 where UCE or ESD-x had forgotten it: TI 1." in text
    assert "unknown weight" not in text


def test_an_attack_on_models_that_still_drew_the_concept_is_no_evidence(store: Path) -> None:
    for path in store.glob("gun/*/uce.json"):
        path.write_text(json.dumps(cell(int(path.parent.name), 9, 10)))
    assert "drawn it before the attack: TI 1, benign." in tables(store, ["gun"])
    (store / "gun" / "0" / "esd-x.json").write_text(json.dumps(cell(0, 0, 6)))
    assert "No evidence" not in tables(store, ["gun"])
    (store / "gun" / "0" / "esd-x.json").write_text(json.dumps(cell(0, 0, 4)))
    assert "being below .5 where UCE or ESD-x had forgotten it: TI 1." in tables(store, ["gun"])


def test_an_attack_that_was_tried_on_neither_is_not_called_weak(store: Path) -> None:
    for path in store.glob("gun/*/uce.json"):
        path.unlink()
    text = tables(store, ["gun"])
    assert "No evidence" not in text and "of unknown weight: TI 1" in text


def test_points_compare_with_the_untouched_model_of_the_same_seed(store: Path) -> None:
    found = points(store, ["gun"])
    assert found["trust"] == (0.1, 0.5, {"gun": 1})  # 4 of 10 kept; the untouched model has 8
    assert found["uce"][:2] == pytest.approx((0.4, (0.9 + 1.0) / 2))
    assert found["uce"].seeds == {"gun": 2}
    assert retention(cell(0, 0, 0, 10), cell(0, 0, 0, 8)) == 1.0


def test_a_concept_with_more_seeds_weighs_no_more(store: Path) -> None:
    for name, found in (("untouched", cell(0, 10, 10)), ("uce", cell(0, 0, 10, 4))):
        path = store / "bomb" / "0" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    asr, kept, seeds = points(store, ["gun", "bomb"])["uce"]
    assert (asr, kept) == pytest.approx(((0.4 + 1.0) / 2, (0.95 + 0.4) / 2))
    assert seeds == {"gun": 2, "bomb": 1}
    assert "seeds: gun 2, bomb 1" in pareto(store, ["gun", "bomb"])


def test_points_go_by_the_attacks_that_all_of_them_stood(store: Path) -> None:
    path = store / "gun" / "1" / "uce.json"
    found, before = json.loads(path.read_text()), points(store, ["gun"])
    strong = {"asr": Rate(9, 10).to_dict(), "stance": "adaptive"}
    found["attacks"] = {**found["attacks"], "relearning_lora": strong}
    path.write_text(json.dumps(found))
    assert points(store, ["gun"]) == before
    found["attacks"] = {"relearning_lora": strong}
    path.write_text(json.dumps(found))
    assert points(store, ["gun"]) == {} and pareto(store, ["gun"]) == ""


def test_the_plot_has_a_point_a_method(store: Path) -> None:
    root = ET.fromstring(pareto(store, ["gun"]))
    space = "{http://www.w3.org/2000/svg}"
    circles = root.findall(f"{space}circle")
    assert len(circles) == 4  # each once more beside its name
    trust, uce = (circle.attrib for circle in circles[::2])
    assert (trust["fill"], uce["fill"]) == ("#c0392b", "#2f7d6b")
    assert float(trust["cx"]) < float(uce["cx"]) and float(trust["cy"]) > float(uce["cy"])
    assert pareto(store, ["bomb"]) == ""
