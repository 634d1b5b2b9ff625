"""The tab's form: its defaults are the engine's, mistakes are named, presets come back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.webui import installed
from trust_engine.errors import OutputError, SpecError, TrustError
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.effort import EFFORTS, steps_of


@pytest.fixture
def form(tmp_path: Path) -> Iterator[Any]:
    """Import the form in a host without a model."""
    with installed(tmp_path, lambda _: {}):
        from trust_webui import form

        yield form


def test_one_word_is_enough(form: Any) -> None:
    order = form.Form(words="gun").order
    assert order.spec == UnlearnSpec((ConceptSpec(("gun",)),))
    assert order.resolution == 0 and order.name == ""


def test_every_field_arrives(form: Any) -> None:
    spec = form.Form(
        words="cat, kitten", kind="conditional", partner="on a red background", also="knife\nsword",
        preserve="dog, car", anchor="dog", objective="cip", effort="quick", budget=0.1, seed=3,
        engine="global", rate=0.1, beta=2.0, eta=1.0, lam=0.2, passes=64,
    ).order.spec  # fmt: skip
    first, *others = spec.concepts
    assert first == ConceptSpec(("cat", "kitten"), "conditional", None, "on a red background",
                                ("dog", "car"), "dog")  # fmt: skip
    assert [c.words for c in others] == [("knife",), ("sword",)]
    assert (spec.objective, spec.engine, spec.budget, spec.seed) == ("cip", "global", 0.1, 3)
    assert (spec.rate, spec.beta, spec.eta, spec.lam, spec.passes) == (0.1, 2.0, 1.0, 0.2, 64)
    assert spec.steps == steps_of("quick") < UnlearnSpec(spec.concepts).steps


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "what to forget"),
        ({"words": "gun", "kind": "combination"}, "goes together with"),
        ({"words": "gun", "preserve": "a gun"}, "preserve"),
        ({"words": "gun", "effort": "heroic"}, "heroic"),
        ({"words": "gun", "budget": 2.0}, "budget"),
        ({"words": "gun", "resolution": 8}, "resolution"),
        ({"words": "gun", "resolution": 100}, "multiple of 64"),
        ({"words": "gun", "partner": "beer"}, "does not use"),
        ({"words": "gun", "kind": "style", "partner": "beer"}, "does not use"),
        ({"words": "gun", "robust": True, "engine": "global"}, "trains layer by layer"),
        ({"words": "gun", "pictures": 17}, "pictures"),
        ({"words": "gun", "seed": -1}, "seed"),
        ({"words": "gun", "stays": "a cat"}, "only robust mode draws"),
        ({"words": "gun", "stays": "a gun", "robust": True}, "is to be forgotten"),
        ({"words": "gun", "templates": "a photo"}, "where the concept goes"),
    ],
)
def test_mistakes_are_named(form: Any, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        _ = form.Form(**fields).order


def test_lines_are_split_at_lines_alone(form: Any) -> None:
    """A sentence may have commas; empty lines and spaces around the others are nobody's."""
    spec = form.Form(
        words="gun, pistol", also="knife", robust=True,
        templates="a photo of {}, outdoors\n\n  {} \r\n", stays="\n a cat, asleep\n \na dog\n",
    ).order.spec  # fmt: skip
    first, other = spec.concepts
    assert first.templates == ("a photo of {}, outdoors", "{}") and other.templates == ()
    assert spec.stays == ("a cat, asleep", "a dog")
    usual = form.Form(words="gun", robust=True, templates="\n ", stays=" \n").order.spec
    assert usual == UnlearnSpec((ConceptSpec(("gun",)),), robust=True)


def test_what_the_page_sends(form: Any) -> None:
    filled = form.filled(
        {"words": "gun", "resolution": 512.0, "seed": 1.0, "budget": 1, "also": None}
    )
    assert (filled.resolution, filled.seed, filled.also) == (512, 1, "")
    for wrong in ({"wordz": "gun"}, {"words": 3}, {"seed": 1.5}, {"seed": True}):
        with pytest.raises(SpecError):
            form.filled(wrong)


def test_presets_come_back(form: Any, tmp_path: Path) -> None:
    lines = {"templates": "{}, big", "stays": "a cat\na dog"}
    made = form.Form(words="gun", effort="thorough", seed=5, **lines)
    assert form.save_preset("My guns/../..", made) == "My-guns"
    assert form.presets() == ["My-guns"]
    assert form.load_preset("My-guns") == made
    assert all(tmp_path in path.parents for path in tmp_path.rglob("*.json"))
    with pytest.raises(TrustError, match="nowhere"):
        form.load_preset("nowhere")


def test_a_preset_saved_before_a_field_was_added_loads(form: Any, tmp_path: Path) -> None:
    form.save_preset("mine", form.Form(words="gun", sampling="lcm"))
    (file,) = tmp_path.rglob("mine.json")
    told = json.loads(file.read_text("utf-8"))
    assert list(told)[-2:] == ["templates", "stays"], "at the end: that is what is new"
    del told["templates"], told["stays"]
    file.write_text(json.dumps(told), encoding="utf-8")
    assert form.load_preset("mine") == form.Form(words="gun", sampling="lcm")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "damaged"),
        ('{"words": "gun", "colour": "red"}', "unknown fields colour"),
        ('{"words": 5}', "words must be a text"),
        ('{"words": "gun", "seed": 1.5}', "seed must be a whole number"),
        ('{"words": "gun", "pictures": 99}', "pictures is 99"),
        ('{"words": "gun", "resolution": 65}', "multiple of 64"),
        ('{"words": "gun", "budget": NaN}', "budget"),
        ('{"words": "gun", "partner": "beer"}', "does not use"),
    ],
)
def test_a_damaged_preset_is_named(form: Any, tmp_path: Path, content: str, said: str) -> None:
    form.save_preset("mine", form.Form(words="gun"))
    (file,) = tmp_path.rglob("mine.json")
    file.write_text(content, encoding="utf-8")
    with pytest.raises(TrustError, match=said) as caught:
        _ = form.load_preset("mine").order
    assert len(str(caught.value)) < 400


def test_files_get_names_that_are_free(form: Any, tmp_path: Path) -> None:
    from trust_webui import folders

    first = folders.fresh(tmp_path, "a gun: \N{GREEK SMALL LETTER ALPHA}/..")
    first.write_bytes(b"")
    assert folders.fresh(tmp_path, "a gun: \N{GREEK SMALL LETTER ALPHA}/..") != first
    assert first.parent == tmp_path and first.suffix == ".safetensors"
    assert folders.fresh(tmp_path, "...").name == "trust.safetensors"


def test_a_folder_that_cannot_be_written_to_is_named(form: Any, tmp_path: Path) -> None:
    from trust_webui import folders

    (tmp_path / "file").touch()
    for wrong in ("file", "file/below"):
        with pytest.raises(OutputError, match=r"nothing can be written to .*file"):
            folders.fresh(tmp_path / wrong, "gun")


def test_efforts_rise() -> None:
    steps = [steps_of(effort) for effort in EFFORTS]
    assert steps == sorted(steps) and steps_of("normal") == UnlearnSpec.steps
