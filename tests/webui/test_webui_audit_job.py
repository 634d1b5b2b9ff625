"""An audit's words come from the diff, and its figures go onto no other diff's label."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.webui import MADE, App, HTTPException, installed
from fakes.webui_a1111 import FakeA1111
from toys.tiny import some_diff
from trust_engine.diff import WeightDiff, load_diff, save_diff
from trust_engine.errors import SpecError
from trust_engine.spec import ConceptSpec, UnlearnSpec


def said(*concepts: ConceptSpec) -> dict[str, Any]:
    """Return the provenance of a diff that forgets these."""
    return {"family": "demo", "spec": UnlearnSpec(concepts).to_json()}


GUN, BEER = ConceptSpec(("gun", "pistol")), ConceptSpec(("man",), "combination", "beer")
LABELS: dict[str, dict[str, Any]] = {
    "gun": said(GUN),
    "pizza": said(ConceptSpec(("pizza",))),
    "two": said(GUN, BEER),
    "silent": {"family": "demo"},
    "merged": {
        "family": "demo",
        "parts": [
            {"strength": 1.0, "provenance": 1, **said(GUN)},
            {"strength": 0.5, "parts": [said(BEER)]},
            {"strength": -1.0, **said(ConceptSpec(("pizza",)))},
        ],
    },
    "odd": {"family": "demo", "spec": '{"concepts": [5, {"words": 3}, {"kind": []}]}'},
}


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """Be in a pretended A1111 with its API on, the tab built, and a diff for each label."""
    made: Any = FakeA1111()
    with installed(tmp_path, made.modules) as shared:
        shared.cmd_opts.api = True
        made.shared, made.folder, made.app = shared, tmp_path / "models" / "trust_diffs", App()
        for i, (name, provenance) in enumerate(LABELS.items()):
            diff = some_diff(made.demo.denoiser, i)
            small = {k: o.with_values(0.01 * o.values) for k, o in diff.offsets.items()}
            save_diff(WeightDiff(small, provenance), made.folder / f"{name}.safetensors")
        MADE.clear()
        from trust_webui import api, tab

        tab.build()
        api.add(None, made.app)
        yield made


def about(name: str, told: ConceptSpec | None = None) -> ConceptSpec:
    """Ask what a diff is audited for."""
    from trust_webui.audit_job import asked_about

    return asked_about(f"{name}.safetensors", told)


def test_the_words_are_the_diffs(page: Any) -> None:
    from trust_webui.audit_job import concepts_of

    assert about("gun") == GUN and about("pizza").words == ("pizza",)
    assert about("gun", ConceptSpec(("Pistol", "weapon"))).words == ("Pistol", "weapon")
    assert about("two", BEER) == BEER
    assert about("silent", GUN) == GUN and about("odd", GUN) == GUN
    merged = load_diff(page.folder / "merged.safetensors")
    assert concepts_of(merged) == [GUN, BEER], "what a part at -1 brings back is not forgotten"
    for name, told, message in (
        ("pizza", GUN, "forgets pizza, not gun"),
        ("two", None, "gun; man with beer: say for which"),
        ("silent", None, "does not say what it forgets"),
        ("two", ConceptSpec(("man",)), "not man"),
        ("gun", ConceptSpec(("gun",), "style"), "forgets gun"),
        ("merged", ConceptSpec(("pizza",)), "not pizza"),
    ):
        with pytest.raises(SpecError, match=message):
            about(name, told)


def test_the_api_asks_the_diff_too(page: Any) -> None:
    body = {"diff": "pizza.safetensors", "concept": {"words": ["gun"]}, "judge": "demo"}
    with pytest.raises(HTTPException, match="forgets pizza, not gun") as caught:
        page.app.call("POST", "/audit", body=body)
    assert caught.value.status_code == 422 and not page.app.call("GET", "/jobs")
    from trust_webui.api import read_question

    assert read_question({"diff": "gun.safetensors", "judge": "demo"}).concept == GUN


def found(name: str) -> Any:
    """Find a component."""
    (one,) = [c for c in MADE if c.settings.get("elem_id") == name]
    return one


def test_the_page_offers_what_the_chosen_diff_forgets(page: Any) -> None:
    (_, (other, _, outputs)) = found("trust_diff").listeners
    assert outputs == [found("trust_audit_concept"), found("trust_verdict")]
    update, verdict = other("gun.safetensors")
    assert update["value"] == "gun" and update["choices"] == ["gun"]
    assert verdict == "", "another diff's verdict does not stay"
    update, _ = other("two.safetensors")
    assert update["choices"] == ["gun", "man with beer"] and update["value"] is None
    for nothing in ("silent.safetensors", "away.safetensors", None):
        assert other(nothing)[0]["choices"] == []
    audited, inputs, _ = found("trust_audit").listeners[0]

    def asked(diff: str, concept: Any) -> str:
        values = {"trust_diff": diff, "trust_audit_concept": concept, "trust_judge": "demo"}
        given = [values.get(c.settings.get("elem_id"), c.value) for c in inputs]
        return str(next(iter(audited(*given)))[1])

    assert "forgets pizza, not gun" in asked("pizza.safetensors", "gun")
    assert "say for which" in asked("two.safetensors", None)
    assert "does not say" in asked("silent.safetensors", "")


def finished(page: Any, name: str) -> Any:
    """Remember a finished audit of a diff of the folder."""
    from trust_webui import applying
    from trust_webui.audit_job import Audited
    from trust_webui.jobs import JOBS, Job

    figures = {"verdict": "gone", "level": "quick", "judge": {"name": "demo"}, "concept": "gun",
               "ua": {"value": 1.0, "low": 0.9, "high": 1.0, "n": 9}}  # fmt: skip
    _, sha = applying.load(f"{name}.safetensors")
    job = Job("audit", name, state="done",
              result=Audited(figures, Path("a.html"), sha, 1.0, "base"))  # fmt: skip
    JOBS._jobs[job.id] = job
    return job


def test_figures_go_onto_the_label_of_what_was_audited(page: Any) -> None:
    from trust_webui.tab_files import _note_audit

    finished(page, "gun")
    finished(page, "two")
    assert "no finished audit of pizza" in _note_audit("pizza.safetensors")[0]
    told, label = _note_audit("gun.safetensors")
    assert "are on its label" in told and "gun" in label, "a later audit of another hides none"
    note = load_diff(page.folder / "gun.safetensors").notes["audit"]
    from trust_webui import applying

    sha = applying.load("gun.safetensors")[1]
    assert note["diffs"] == [{"sha256": sha, "strength": 1.0}]
    assert (note["base"], note["concept"]) == ("base", "gun")
    # The file may be another by now, under the name that was audited.
    other = (page.folder / "pizza.safetensors").read_bytes()
    (page.folder / "gun.safetensors").write_bytes(other)
    assert "no finished audit of gun.safetensors as it is now" in _note_audit("gun.safetensors")[0]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"resolution": "4"}, "resolution must be a whole number"),
    ({"resolution": 4}, "multiple of 64"),
    ({"resolution": 100}, "multiple of 64"),
    ({"resolution": 10_000_000}, "between 0 and 2048"),
    ({"resolution": -64}, "between 0 and 2048"),
    ({"resolution": True}, "whole number"),
    ({"resolution": 64.0}, "whole number"),
    ({"resolution": None}, "whole number"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**63}, "seed is"),
    ({"seed": 1.5}, "seed must be a whole number"),
    ({"seed": "0"}, "seed must be a whole number"),
    ({"images": 0}, "images"),
    ({"images": 10**9}, "images"),
    ({"strength": float("nan")}, "between -2 and 2"),
    ({"strength": 3}, "between -2 and 2"),
    ({"level": ["quick"]}, "level"),
    ({"level": "deep"}, "level"),
    ({"judge": "de\0mo"}, "judge must be a text"),
    ({"judge": 5}, "judge must be a text"),
    ({"judge": "x" * 5000}, "judge"),
    ({"diff": "gun\0.safetensors"}, "no diff's name"),
    ({"diff": "g" * 300 + ".safetensors"}, "this long"),
    ({"diff": 5}, "diff must be a text"),
    ({"diff": "/etc/passwd"}, "no such diff"),
    ({"retain": "cat"}, "list of texts"),
    ({"retain": [1]}, "list of at most"),
    ({"retain": ["cat"]}, "demo's judge looks for all"),
    ({"concept": "gun"}, "concept must be an object"),
    ({"concept": {"words": ["gun"], "companion": "beer"}}, "combination"),
    ({"eyes": 3}, "unknown fields eyes"),
]


def test_bad_questions_are_answered_in_one_line(page: Any) -> None:
    for wrong, message in BAD:
        body = {"diff": "gun.safetensors", "judge": "demo", **wrong}
        with pytest.raises(HTTPException, match=message) as caught:
            page.app.call("POST", "/audit", body=body)
        detail = caught.value.detail
        assert caught.value.status_code == 422 and "\n" not in detail and len(detail) <= 400
    assert page.app.call("GET", "/jobs") == [], "refused before any work"


def test_json_is_read_strictly(page: Any) -> None:
    from trust_webui.api import parsed

    for content in (b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a": 1, "a": 2}',
                    b'[{"name": "x", "name": "y"}]'):  # fmt: skip
        with pytest.raises(SpecError) as caught:
            parsed(content)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert parsed(json.dumps({"diffs": []}).encode()) == {"diffs": []}
