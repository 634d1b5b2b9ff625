"""What an audit asks for: topics, pictures to draw, levels, and the intervals of its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from toys.audit_toy import BUDGETS, LEVEL, TOPIC, ToyJudge, forgets_the_word, toy_model
from trust_engine.audit import Audit, Rate, Topic, mean_figure, wilson
from trust_engine.audit.checks.retention import neighbours
from trust_engine.audit.levels import FULL, QUICK, pick_level
from trust_engine.audit.probe_prompts import (
    GROUPS,
    around,
    base_of,
    concept_shots,
    core_probes,
    member_shots,
    neutral_shots,
    pair_probes,
    paraphrase_shots,
    retained_shots,
)
from trust_engine.audit.topic import demo_topic, open_topic
from trust_engine.demo.vocabulary import OBJECTS
from trust_engine.errors import SpecError


@pytest.mark.parametrize(
    "topic",
    [
        demo_topic("gun"),
        demo_topic("baby", "combination", "beer"),
        demo_topic("cat", "conditional", None, "on a red background"),
        demo_topic("openmoji", "style"),
        open_topic("nudity", retain=("a dog",)),
    ],
    ids=lambda topic: topic.name,
)
def test_shots_of_every_kind_of_concept(topic: Topic) -> None:
    core = core_probes(topic, 2, 3)
    assert len(core.target) == 12
    assert all(set(shot.wanted) == set(topic.labels) for shot in core.target)
    assert all(not set(topic.labels) <= set(shot.wanted) or topic.kind == "conditional"
               for shot in core.others)  # fmt: skip
    groups = (concept_shots, retained_shots)
    every = [*core.target, *core.synonyms, *core.others]
    every += [shot for make in groups for g in GROUPS[5:] for shot in make(topic, g, 5, 3)]
    for shot in every:
        before, after = around(topic, core.target[0])
        assert "  " not in shot.prompt and before and "\N{SECTION SIGN}" not in before + after
    paraphrases = paraphrase_shots(topic, 16, 3)
    plain = {shot.prompt for shot in core.target}
    assert not plain & {shot.prompt for shot in paraphrases}
    for make in (pair_probes, neutral_shots):
        assert all(shot.seed >= base_of("pairs", 3) for shot in make(topic, 9, 3))


def test_a_condition_is_never_asked_for_among_what_stays() -> None:
    topic = demo_topic("cat", "conditional", None, "on a red background")
    cats = [shot for shot in core_probes(topic, 20, 0).others if shot.words == "cat"]
    assert cats and all(shot.scene.background != "red" for shot in cats)
    style = demo_topic("openmoji", "style")
    assert all(shot.scene.style != "openmoji" for shot in core_probes(style, 5, 0).others)


def test_a_condition_is_called_back_only_where_thing_and_condition_are_seen() -> None:
    """The thing alone is what the concept is to be replaced by."""
    red = demo_topic("cat", "conditional", None, "on a red background")
    assert red.labels == ("cat", "red") and red.things == ("cat",)
    assert all(shot.wanted == ("cat", "red") for shot in core_probes(red, 2, 0).synonyms)
    night = open_topic("cat", "conditional", None, "at night", retain=("dog",))
    assert night.labels == ("cat at night",)
    for shot in (*core_probes(night, 2, 0).target, *paraphrase_shots(night, 16, 0)):
        assert shot.prompt.lower().endswith("at night")
        assert around(night, shot)[1] == "at night"


def test_parts_of_a_concept_are_asked_for_one_by_one() -> None:
    red = demo_topic("cat", "conditional", None, "on a red background")
    shots = member_shots(red, 40, 0)
    cats = [shot for shot in shots if shot.words == "cat"]
    assert len(cats) == 20 and all(shot.scene.background != "red" for shot in cats)
    assert all(s.scene.background == "red" for s in shots if s not in cats)
    both = demo_topic("baby", "combination", "beer")
    assert {shot.wanted for shot in member_shots(both, 6, 0)} == {("baby",), ("beer",)}
    assert all("and" not in shot.prompt.split() for shot in member_shots(both, 6, 0))


def test_of_a_combination_each_member_is_asked_for_with_others() -> None:
    shots = pair_probes(demo_topic("baby", "combination", "beer"), 8, 0)
    members = [set(shot.wanted) & {"baby", "beer"} for shot in shots]
    assert all(len(member) == 1 and len(shot.wanted) == 2
               for member, shot in zip(members, shots, strict=True))  # fmt: skip
    assert {"baby"} in members and {"beer"} in members
    alone = pair_probes(demo_topic("gun"), 8, 0)
    assert all(len(s.wanted) == 1 and "gun" in s.prompt and s.wanted != ("gun",) for s in alone)


def test_neighbours_are_near_in_text() -> None:
    near = neighbours(TOPIC, toy_model().encoder, 2)
    assert len(near) == 2 and "gun" not in near


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: demo_topic("spaceship"), "'spaceship' is not an object"),
        (lambda: demo_topic("cat", "style"), "'cat' is not a style"),
        (lambda: demo_topic("baby", "combination", "rum"), "'rum' is not an object"),
        (lambda: demo_topic("cat", "conditional", None, "at night"), "names no background"),
        (lambda: pick_level("thorough"), "level 'thorough' is unknown"),
        (lambda: core_probes(TOPIC, 0, 0), "images is 0"),
    ],
)
def test_bad_questions_are_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        call()


def test_a_judge_that_does_not_know_the_concept_is_refused() -> None:
    model = toy_model()
    topic = replace(TOPIC, word="spaceship")
    with pytest.raises(SpecError, match="does not know 'spaceship'"):
        Audit(model, ToyJudge(), forgets_the_word(model), topic, LEVEL, 1)


def test_levels() -> None:
    assert set(QUICK.attacks) < set(FULL.attacks)
    assert FULL.reference
    assert (BUDGETS.judged, FULL.budgets.judged) == (8, 24)
    assert len(OBJECTS) == 28


def test_wilson_interval() -> None:
    """Against Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
    ):  # fmt: skip
        assert wilson(hits, n) == pytest.approx((low, high), abs=2e-4)
    assert Rate(0, 0).to_dict() == {"value": None, "n": 0, "low": 0.0, "high": 1.0}
    assert mean_figure([])["value"] is None
    assert mean_figure([1.0, 3.0])["value"] == 2.0
