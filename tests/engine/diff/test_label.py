"""A label names every concept, or says how many it leaves out; what does nothing says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from toys.small_unet import KEY, small_base, small_diff
from trust_engine.cli.main import main
from trust_engine.diff import SparseOffset, WeightDiff, combine, payload_sha256, save_diff, thinned
from trust_engine.diff.label import concepts, describe, label, named


def of(word: str) -> WeightDiff:
    """Make a diff of one entry that forgets a word."""
    spec = json.dumps({"concept": {"words": [word], "kind": "single"}})
    dense = torch.zeros(4, 4)
    dense[0, 0] = 1 + sum(map(ord, word)) / 1000
    return WeightDiff({KEY: SparseOffset.of(dense)}, {"spec": spec})


def shown(diff: WeightDiff) -> str:
    """Return the label's line on what the diff forgets."""
    text = label("d", describe(diff, 1))
    return next(line for line in text.splitlines() if line.startswith("  forgets"))


WORDS = [f"word{i}" for i in range(50)]


def test_fifty_at_once() -> None:
    merged = combine([(of(word), 1.0) for word in WORDS])
    assert concepts(merged.provenance) == WORDS
    line = shown(merged)
    listed, _, rest = line.removeprefix("  forgets").strip().partition(" and ")
    names = listed.split("; ")
    assert names == WORDS[: len(names)]
    assert rest == f"{50 - len(names)} more, 50 in all"


def test_one_after_the_other() -> None:
    """However deep the merges of merges go."""
    merged = of(WORDS[0])
    for word in WORDS[1:]:
        merged = combine([(merged, 1.0), (of(word), 1.0)])
    assert concepts(merged.provenance) == WORDS
    assert "50 in all" in shown(merged)


def test_strengths_multiply_and_what_cancels_is_not_named() -> None:
    inner = combine([(of("gun"), 0.5), (of("cat"), 1.0)])
    assert concepts(combine([(inner, 0.5), (of("dog"), -1.0)]).provenance) == [
        "gun x0.25",
        "cat x0.5",
        "dog x-1",
    ]
    assert concepts(combine([(inner, 1.0), (of("gun"), -0.5)]).provenance) == ["cat"]
    assert concepts(combine([(inner, 1.0), (of("gun"), 0.5)]).provenance) == ["gun", "cat"]
    assert concepts(combine([(of("gun"), 0.0), (of("cat"), 1.0)]).provenance) == ["cat"]


@pytest.mark.parametrize("part", [{}, {"spec": "{"}, 1, {"spec": "[]", "sha256": 3}])
def test_a_part_that_says_nothing_counts(part: Any) -> None:
    spec = of("gun").provenance["spec"]
    provenance = {"parts": [{"spec": spec, "strength": 1.0, "sha256": "a"}, part]}
    assert named(provenance) == "gun; not said"


def test_long_names_hide_no_others() -> None:
    merged = combine([(of("x" * 500), 1.0), (of("gun"), 1.0)])
    assert shown(merged).endswith("...; gun")
    many = combine([(of(f"{i} {'x' * 500}"), 1.0) for i in range(9)])
    assert "more, 9 in all" in shown(many)
    assert len(shown(many)) < 350


def test_what_does_nothing_does_not_say_that_it_forgets() -> None:
    for nothing in (
        combine([(of("gun"), 1.0), (of("gun"), -1.0)]),
        combine([(of("gun"), 0.0)]),
        thinned(of("gun"), 0.0),
    ):
        assert nothing.changed == 0
        assert "gun" not in shown(nothing)
        assert "nothing: it changes no entry" in shown(nothing)


@pytest.mark.parametrize(
    "line",
    [
        "merge gun:0 --out x",
        "merge gun cat --keep 0 --out x",
        "apply gun:0 --model m --out x",
        "export gun:0 --format dense --out x",
    ],
)
def test_commands_that_would_do_nothing_are_refused(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("gun", "cat"):
        save_diff(of(word), Path(word))
    assert main(["diff", *line.split()]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not Path("x").exists()


def audited(strength: float = 1.0, base: str | None = None, seed: int = 0) -> str:
    """Return the label of a diff with an audit noted on it, by hand if need be."""
    audit = {
        "ua": {"value": 0.75},
        "base": base or small_base(),
        "diffs": [{"sha256": payload_sha256(small_diff(seed)), "strength": strength}],
    }
    diff = WeightDiff(small_diff().offsets, small_diff().provenance, {"audit": audit})
    return label("d", describe(diff, 1))


def test_an_audit_is_shown_with_what_it_measured() -> None:
    assert "ua 0.75" in audited() and "at strength" not in audited()
    assert "on another base" not in audited()
    assert "at strength 0.5" in audited(0.5) and "ua 0.75" in audited(0.5)
    assert "on another base, elsewhere" in audited(base="elsewhere")
    assert "ua 0.75" not in audited(seed=1)
    assert "noted, and not shown: it measured another one" in audited(seed=1)
