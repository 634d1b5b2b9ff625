"""One table of settings: what each may be is checked, and every door reads it."""

from __future__ import annotations

from typing import Any

import pytest

from trust_engine.errors import SpecError
from trust_engine.settings import Setting
from trust_engine.spec import CHOICES, DEFAULTS, SETTINGS, ConceptSpec, UnlearnSpec

GUN = (ConceptSpec(("gun",)),)


def wrong(about: Setting) -> list[Any]:
    """List values that a setting cannot have."""
    if about.kind == "choice":
        return ["", "of no kind", None, 0, about.options[0].upper()]
    if about.kind == "switch":
        return [1, 0, "yes", None]
    whole = [about.low + 0.5] if about.kind == "whole number" else []
    over = about.high * 2 if about.high > 0 else about.high + 1
    return [about.low - 1, over, float("nan"), float("inf"), True, "1", None, *whole]


def test_every_field_but_concepts_and_pictures_is_a_setting() -> None:
    assert ["concepts", *SETTINGS, "stays", "ablation"] == list(UnlearnSpec.__dataclass_fields__)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_setting_cannot_be_is_refused_by_name(name: str) -> None:
    for value in wrong(SETTINGS[name]):
        with pytest.raises(SpecError, match=f"^{name} "):
            UnlearnSpec(GUN, **{name: value})


@pytest.mark.parametrize("name", SETTINGS)
def test_its_default_and_its_ends_are_accepted(name: str) -> None:
    about = SETTINGS[name]
    assert getattr(UnlearnSpec(GUN), name) == about.default == DEFAULTS[name]
    ends = [about.low, about.high] if "number" in about.kind else about.options or (True, False)
    for value in ends:
        assert getattr(UnlearnSpec(GUN, **{name: value}), name) == value


@pytest.mark.parametrize("name", SETTINGS)
def test_it_says_what_it_means(name: str) -> None:
    about = SETTINGS[name]
    assert about.help.endswith(".") and len(about.help) > 20
    if about.usual:
        assert about.low <= about.usual[0] <= about.default <= about.usual[1] <= about.high
        assert about.label


def test_choices_are_the_tables() -> None:
    assert {n: s.options for n, s in SETTINGS.items() if s.kind == "choice"} == CHOICES
