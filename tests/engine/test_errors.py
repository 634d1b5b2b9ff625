"""An error says what is wrong with which setting, and what to do, in the words of each door."""

from __future__ import annotations

import pickle

import pytest

from trust_engine.cli.wording import FLAGS, in_flags
from trust_engine.errors import DiffError, SpecError
from trust_engine.models.memory import exhaustion_told
from trust_engine.spec import SETTINGS, ConceptSpec, UnlearnSpec


def test_a_sentence_begins_with_its_field_and_ends_with_the_remedy() -> None:
    error = SpecError("is 50", field="eta", remedy="lower it, or take {engine global}")
    assert str(error) == "eta is 50; lower it, or take engine global"
    assert error.worded(in_flags) == "--eta is 50; lower it, or take --engine global"
    assert error.worded(lambda name, value: f"<{name}|{value}>") == (
        "<eta|> is 50; lower it, or take <engine|global>"
    )


def test_braces_of_a_user_are_left_alone() -> None:
    assert str(DiffError("{eta} is no name", remedy="give another")) == (
        "{eta} is no name; give another"
    )


def test_an_error_survives_the_way_between_processes() -> None:
    error = SpecError("is empty", field="anchor", remedy="name {anchor}")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.field) == (str(error), "anchor")


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_setting_says_which_one_is_wrong(name: str) -> None:
    with pytest.raises(SpecError) as error:
        UnlearnSpec((ConceptSpec(("gun",)),), **{name: object()})  # type: ignore[arg-type]
    assert error.value.field == name
    shown = f"--{FLAGS[name]}" if SETTINGS[name].flag else name
    assert error.value.worded(in_flags).startswith(f"{shown} ")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"kind": "combination"}, "companion"),
        ({"kind": "conditional", "condition": " "}, "condition"),
        ({"companion": "beer"}, "companion"),
        ({"anchor": "gun"}, "anchor"),
        ({"preserve": ("a gun",)}, "preserve"),
        ({"kind": "thing"}, "kind"),
        ({"templates": ("no place",)}, "template"),
    ],
)
def test_a_concept_says_which_part_of_it_is_wrong(fields: dict[str, object], wrong: str) -> None:
    with pytest.raises(SpecError) as error:
        ConceptSpec(("gun",), **fields)  # type: ignore[arg-type]
    assert error.value.field == wrong


def test_what_to_do_without_memory_is_the_doors_to_say() -> None:
    with pytest.raises(Exception, match="memory ran out") as error, exhaustion_told():
        raise MemoryError
    assert "--memory low" in error.value.worded(in_flags)  # type: ignore[attr-defined]
    assert "--" not in str(error.value)
