"""Specs: what is refused, by which words, and JSON there and back."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from toys.tiny import tiny_model
from trust_engine.errors import SpecError
from trust_engine.spec import Ablation, ConceptSpec, UnlearnSpec
from trust_engine.unlearn.run import Unlearning

GUN = ConceptSpec(("gun",))
CONCEPTS = {
    "single": ConceptSpec((" gun ", "fire   arm"), preserve=("knife",), anchor="a toy"),
    "combination": ConceptSpec(("baby",), "combination", companion="beer"),
    "conditional": ConceptSpec(("cat",), "conditional", condition="on a red background"),
    "style": ConceptSpec(("noto",), "style"),
}
BAD_CONCEPTS: list[tuple[dict[str, Any], str]] = [
    ({"words": ()}, "concept is empty"),
    ({"words": ("",)}, "concept is empty"),
    ({"words": ("gun", " \t")}, "concept is empty"),
    ({"words": "gun"}, "concept must be a list"),
    ({"words": ("gun", 3)}, "concept must be a list"),
    ({"words": 3}, "concept must be a list"),
    ({"words": None}, "concept must be a list"),
    ({"words": ("gun",), "preserve": ("",)}, "preserve is empty"),
    ({"words": ("gun",), "preserve": "cat"}, "preserve must be a list"),
    ({"words": ("gun",), "preserve": ("cat", "GUN")}, "preserve names the concept itself"),
    ({"words": ("gun",), "preserve": ("a toy gun",)}, "preserve names the concept itself"),
    ({"words": ("gun",), "preserve": ("two Guns",)}, "preserve names the concept itself"),
    ({"words": ("gun",), "templates": ("a photo",)}, "needs {} once"),
    ({"words": ("gun",), "templates": ("{} and {}",)}, "needs {} once"),
    ({"words": ("gun",), "templates": ("{} {0}",)}, "needs {} once"),
    ({"words": ("gun",), "kind": "word"}, "kind 'word' is unknown"),
    ({"words": ("gun",), "kind": ["single"]}, "kind .* is unknown"),
    ({"words": ("gun",), "anchor": " "}, "anchor is empty"),
    ({"words": ("gun",), "anchor": 5}, "anchor must be a text"),
    ({"words": ("gun",), "anchor": "a Gun"}, "anchor is the concept itself"),
    ({"words": ("baby",), "kind": "combination"}, "companion is missing"),
    (
        {"words": ("baby",), "kind": "combination", "companion": " "},
        "a combination concept needs it",
    ),
    ({"words": ("baby",), "kind": "combination", "companion": 5}, "companion must be a text"),
    ({"words": ("baby",), "kind": "combination", "companion": "Baby "}, "companion equals"),
    ({"words": ("cat",), "kind": "conditional"}, "condition is missing"),
    ({"words": ("cat",), "kind": "conditional", "condition": "cat"}, "condition equals"),
    ({"words": ("cat",), "kind": "conditional", "condition": "a cat"}, "condition equals"),
    (
        {"words": ("cat",), "kind": "conditional", "condition": "on red", "anchor": "cat on red"},
        "anchor is the concept itself",
    ),
    ({"words": ("cat",), "companion": "beer"}, "companion belongs to kind combination"),
    ({"words": ("cat",), "companion": ""}, "companion belongs to kind combination"),
    ({"words": ("cat",), "condition": "red"}, "condition belongs to kind conditional"),
    (
        {"words": ("x",), "kind": "combination", "companion": "b", "condition": "c"},
        "condition belongs to kind conditional",
    ),
]
BAD_SETTINGS: dict[str, list[Any]] = {
    "steps": [0, -1, 100_001, 1.5, True, "3", None, 10**400],
    "trajectory_steps": [0, 101, 2.0],
    "seed": [-1, 2**63, 0.5, False],
    "rate": [0, 10.01, float("nan"), float("inf"), "fast", 10**400],
    "xi": [-10.5, 101, float("nan"), None],
    "budget": [0, 1.5, -1],
    "cfg": [0.9, 31, float("nan")],
    "beta": [-0.1, 1e7],
    "lam": [-0.1, 1e7, float("-inf")],
    "gamma": [float("nan"), "two", None],
    "tau": [0, -1, float("inf"), "wide"],
    "objective": ["csx", None, 3],
    "engine": ["remote", None],
    "saliency": ["noises", 1],
    "refresh": [-1, 0.5],
    "passes": [0, 1.5],
    "eta": [-0.1, 11, "far"],
    "stop_effect": [-1, float("nan")],
    "stop_harm": [-1, "much"],
    "checkpointing": [1, None],
}
GOOD_SETTINGS: dict[str, list[Any]] = {
    "steps": [1, 100_000],
    "seed": [0, 2**63 - 1],
    "rate": [10, 1e-8],
    "budget": [1.0, 1],
    "cfg": [1, 30.0],
    "beta": [0],
    "lam": [0.0],
    "objective": ["csr", "cip", "none"],
    "engine": ["local", "global"],
    "refresh": [0, 5],
}


@pytest.mark.parametrize(("values", "message"), BAD_CONCEPTS)
def test_a_bad_concept_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ConceptSpec(**values)


@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n in BAD_SETTINGS for v in BAD_SETTINGS[n]],
    ids=lambda value: str(value)[:9],
)
def test_a_bad_setting_is_named(name: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"^{name} "):
        UnlearnSpec((GUN,), **{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n in GOOD_SETTINGS for v in GOOD_SETTINGS[n]]
)
def test_the_limits_themselves_are_allowed(name: str, value: Any) -> None:
    assert getattr(UnlearnSpec((GUN,), **{name: value}), name) == value


BAD_ABLATIONS = {
    "hessian": "inexact", "selection": "none", "pool": "head", "granularity": "column"
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ABLATIONS)
def test_a_bad_ablation_is_named(name: str) -> None:
    with pytest.raises(SpecError, match=f"{name} '{BAD_ABLATIONS[name]}' is unknown"):
        Ablation(**{name: BAD_ABLATIONS[name]})
    with pytest.raises(SpecError, match="ablation must be"):
        UnlearnSpec((GUN,), ablation={name: "auto"})  # type: ignore[arg-type]


def test_an_ablation_is_read_nested_and_as_it_was_before() -> None:
    """A usual spec says nothing of it; files from when it stood among the rest are read."""
    usual = UnlearnSpec((GUN,))
    assert "ablation" not in usual.to_json() and UnlearnSpec.from_json(usual.to_json()) == usual
    rows = UnlearnSpec((GUN,), ablation=Ablation(granularity="row"))
    assert json.loads(rows.to_json())["ablation"] == {"granularity": "row"}
    assert UnlearnSpec.from_json(rows.to_json()) == rows
    flat = json.loads(usual.to_json()) | {
        "hessian": "auto", "selection": "neurons", "pool": "layer", "granularity": "row"
    }  # fmt: skip
    assert UnlearnSpec.from_json(json.dumps(flat)) == rows
    for wrong, message in (([], "must be an object"), ({"granule": 1}, "unknown fields granule")):
        with pytest.raises(SpecError, match=message):
            UnlearnSpec.from_json(json.dumps(flat | {"ablation": wrong}))


@pytest.mark.parametrize("kind", CONCEPTS)
def test_json_there_and_back(kind: str) -> None:
    spec = UnlearnSpec(
        (CONCEPTS[kind], GUN) if kind != "single" else (CONCEPTS[kind],),
        xi=2,
        rate=1 / 3,
        seed=2**63 - 1,
        objective="cip",
    )
    again = UnlearnSpec.from_json(spec.to_json())
    assert again == spec
    assert again.to_json() == spec.to_json()
    assert "\n" not in spec.to_json()


def test_words_lose_stray_space() -> None:
    assert CONCEPTS["single"].words == ("gun", "fire arm")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("single", "gun"),
        ("combination", "baby with beer"),
        ("conditional", "cat on a red background"),
        ("style", "noto"),
    ],
)
def test_a_concept_has_a_name_for_people(kind: str, name: str) -> None:
    assert CONCEPTS[kind].name == name


def edited(**changes: Any) -> str:
    """Write a sound spec's JSON with some fields exchanged."""
    sound = json.loads(UnlearnSpec((GUN,)).to_json())
    if "concept" in changes:
        sound.pop("concepts")
    return json.dumps({**sound, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "spec is not JSON"),
        ("{", "spec is not JSON"),
        ("[" * 100_000, "spec is not JSON"),
        ('{"concept": {"words": ["gun"]}, "steps": ' + "9" * 5000 + "}", "spec is not JSON|steps"),
        ("[]", "JSON object"),
        ("{}", '"concept" object'),
        ('{"concepts": []}', "there is no concept"),
        ('{"concepts": [1]}', '"concept" object'),
        ('{"concept": "gun"}', '"concept" object'),
        ('{"concept": {}}', "words"),
        (edited(version=2), "spec version 2 is not 1"),
        (edited(version="1"), "spec version 1 is not 1"),
        (edited(speed=1, colour=2), "spec has unknown fields colour, speed"),
        (edited(concept={"words": ["gun"], "word": 1}), "concept has unknown fields word"),
        (edited(steps="many"), "steps must be a whole number, not 'many'"),
        (edited(steps=None), "steps must be a whole number"),
        (edited(rate=float("nan")), "rate "),
        (edited(concept={"words": "gun"}), "concept must be a list"),
        (edited(concept={"words": 7}), "concept must be a list"),
        (edited(concept={"words": ["gun"], "anchor": 7}), "anchor must be a text"),
        (edited(concept={"words": ["a"], "kind": {}}), "kind .* is unknown"),
    ],
)
def test_bad_json_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        UnlearnSpec.from_json(text)


def test_json_may_leave_out_what_has_a_default() -> None:
    assert UnlearnSpec.from_json('{"concept": {"words": ["gun"]}}') == UnlearnSpec((GUN,))


def test_one_concept_may_stand_alone() -> None:
    assert UnlearnSpec(GUN) == UnlearnSpec((GUN,))  # type: ignore[arg-type]


@pytest.mark.parametrize("concepts", [(), None, "gun", (GUN, "cat"), 7])
def test_concepts_are_concepts(concepts: Any) -> None:
    with pytest.raises(SpecError, match="concept"):
        UnlearnSpec(concepts)


def test_concepts_may_not_contradict_each_other() -> None:
    with pytest.raises(SpecError, match="preserve names the concept 'gun'"):
        UnlearnSpec((GUN, ConceptSpec(("cat",), preserve=("a gun",))))
    with pytest.raises(SpecError, match="twice"):
        UnlearnSpec((GUN, GUN))


@pytest.mark.parametrize(
    ("kind", "prompt", "carried"),
    [
        ("single", "A GUN, loaded", False),
        ("single", "my fire arm", True),
        ("combination", "a baby and a car", False),
        ("combination", "two beers for a baby", True),
        ("conditional", "a cat on a blue background", False),
        ("conditional", "a sleepy cat, on a red background", True),
        ("style", "a noto cat", True),
        ("style", "a notorious cat", False),
    ],
)
def test_a_prompt_carries_a_concept_by_whole_words(kind: str, prompt: str, carried: bool) -> None:
    concept = CONCEPTS[kind] if kind != "single" else ConceptSpec(("gunman", "fire arm"))
    assert concept.carried_by(prompt) is carried


def test_several_concepts_have_a_name() -> None:
    assert UnlearnSpec((GUN, CONCEPTS["combination"])).name == "gun, baby with beer"


@pytest.mark.parametrize("nothing", ["a", "The", "...", "\u200b", "\x00", "\ufeff", "-", "{}"])
@pytest.mark.parametrize("field", ["words", "preserve", "companion", "condition", "anchor"])
def test_what_names_nothing_is_refused(nothing: str, field: str) -> None:
    kinds = {"companion": "combination", "condition": "conditional"}
    value: Any = (nothing,) if field in ("words", "preserve") else nothing
    given = {"words": ("gun",), "kind": kinds.get(field, "single"), field: value}
    with pytest.raises(SpecError, match=r"(is empty|has no word in it); name it"):
        ConceptSpec(**given)


@pytest.mark.parametrize("word", ["🔫", "猫", "कुत्ता", "C++", "❤️"])
def test_every_script_and_symbol_is_a_concept(word: str) -> None:
    assert ConceptSpec((word,), preserve=("🐱", "dog"), anchor="🍌").carried_by(f"a {word} on red")


def test_a_comma_parts_names_of_one_concept() -> None:
    assert ConceptSpec(("pistol, firearm", "Pistol")).words == ("pistol", "firearm")
    assert ConceptSpec(("gun",), preserve=("cat, dog",)).preserve == ("cat", "dog")
    with pytest.raises(SpecError, match="names several things"):
        ConceptSpec(("baby",), "combination", companion="beer, wine")


@pytest.mark.parametrize(
    ("concept", "kept"),
    [("guns", "gun"), ("babies", "a baby"), ("knife", "Knives"), ("man", "men")],
)
def test_the_concept_in_another_number_is_not_preserved(concept: str, kept: str) -> None:
    with pytest.raises(SpecError, match="preserve names the concept itself"):
        ConceptSpec((concept,), preserve=(kept,))


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ((("gun",), ("Gun",)), "same concept twice"),
        ((("gun",), ("a pistol", "guns")), "same concept twice"),
        ((("gun", "single", None, None, (), "pistol"), ("pistols",)), "forgotten itself"),
        ((("cat",), ("gun", "single", None, None, ("a cat",))), "preserve names the concept 'cat'"),
        ((("baby",), ("baby", "combination", "beer")), "to be forgotten everywhere"),
        ((("beers",), ("baby", "combination", "beer")), "to be forgotten everywhere"),
        ((("baby", "combination", "beer"), ("beers", "combination", "Baby")), "twice"),
        ((("cat",), ("cat", "conditional", None, "on red")), "to be forgotten everywhere"),
    ],
)
def test_concepts_that_contradict_each_other(concepts: Any, message: str) -> None:
    built = []
    for words, *rest in concepts:
        if rest and rest[0] not in ("single", "combination", "conditional", "style"):
            words, rest = (words, *rest), []
        built.append(ConceptSpec(words if isinstance(words, tuple) else (words,), *rest))
    with pytest.raises(SpecError, match=message):
        UnlearnSpec(tuple(built))


def test_beer_beside_beer_is_refused() -> None:
    with pytest.raises(SpecError, match="companion equals the concept"):
        ConceptSpec(("beer",), "combination", companion="Beers")


def test_a_long_name_does_not_flood_the_message() -> None:
    with pytest.raises(SpecError) as caught:
        ConceptSpec(("x" * 6000,), preserve=("x" * 6000,))
    assert len(str(caught.value)) < 200


def test_what_a_run_would_pass_over_is_refused_and_stays_readable() -> None:
    """By every door and by the run itself; a diff that says so is still read."""
    spec = UnlearnSpec((ConceptSpec(("gun",)),), robust=True, engine="global")
    assert UnlearnSpec.from_json(spec.to_json()) == spec
    with pytest.raises(SpecError, match="robust trains layer by layer"):
        spec.refuse_unheeded()
    for fine in ({"robust": True}, {"engine": "global"}):
        replace(spec, **{"robust": False, "engine": "local", **fine}).refuse_unheeded()
    with pytest.raises(SpecError, match="robust trains layer by layer"):
        Unlearning(tiny_model(), spec)


def test_pictures_of_what_must_stay_are_read_and_refused() -> None:
    """A prompt a picture, commas and repetitions its own; a spec without them is as it ever was."""
    gun = ConceptSpec(("gun",))
    plain = UnlearnSpec((gun,), robust=True)
    assert "stays" not in json.loads(plain.to_json())
    mine = replace(plain, stays=("a cat, a tree", "a dog", "a dog"))
    assert mine.stays == ("a cat, a tree", "a dog", "a dog")
    assert UnlearnSpec.from_json(mine.to_json()) == mine
    mine.refuse_unheeded()
    for wrong, told in (
        (("a cat", "a GUN beside a dog"), "stays shows what is to be forgotten ('a GUN"),
        (("",), "stays is empty"),
        ("a cat", "stays must be a list of texts"),
        (("a cat",) * 2001, "stays lists 2,001 pictures; use at most 2,000"),
    ):
        with pytest.raises(SpecError, match=re.escape(told)):
            replace(plain, stays=wrong)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="which only robust mode draws"):
        replace(mine, robust=False).refuse_unheeded()


@pytest.mark.parametrize(
    ("changes", "shrinks"),
    [
        ({}, True),
        ({"schedule": "bounded"}, False),
        ({"objective": "zero"}, False),
        ({"saliency": "clip"}, False),
        ({"saliency": "noise"}, False),
        ({"engine": "global"}, False),
        ({"engine": "global", "saliency": "noise"}, True),
        ({"ablation": Ablation(selection="random")}, False),
        ({"ablation": Ablation(selection="all")}, False),
    ],
)
def test_a_mask_shrinks_where_it_chooses_by_what_it_measures_itself(
    changes: dict[str, Any], shrinks: bool
) -> None:
    assert UnlearnSpec((GUN,), **changes).shrinks is shrinks


@pytest.mark.parametrize(
    ("changes", "exact"),
    [
        ({}, True),
        ({"objective": "cip"}, True),
        ({"objective": "none"}, False),
        ({"objective": "zero"}, False),
        ({"lam": 0.0}, False),
        ({"engine": "global"}, False),
        ({"engine": "global", "ablation": Ablation(hessian="exact")}, True),
        ({"ablation": Ablation(hessian="finite")}, False),
    ],
)
def test_a_penalty_is_differentiated_twice_locally_or_at_a_wish(
    changes: dict[str, Any], exact: bool
) -> None:
    assert UnlearnSpec((GUN,), **changes).exact_hessian is exact


@pytest.mark.parametrize(
    ("changes", "together", "through", "whole"),
    [
        ({}, False, False, False),
        ({"engine": "global"}, True, True, True),
        ({"saliency": "noise"}, False, True, True),
        ({"robust": True}, False, False, True),
    ],
)
def test_what_a_run_needs_of_the_unet(
    changes: dict[str, Any], together: bool, through: bool, whole: bool
) -> None:
    spec = UnlearnSpec((GUN,), **changes)
    assert (spec.together, spec.through_unet, spec.whole_unet) == (together, through, whole)
