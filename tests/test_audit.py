"""The audit: its figures on models known by heart, its report, cancel, resume, and its page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from audit_toy import (
    BUDGETS,
    FEW,
    LEVEL,
    TOPIC,
    TOPIC_WORLD,
    ToyJudge,
    forgets_the_thing,
    forgets_the_word,
    toy_model,
)
from tiny import frozen_bits

from trust_engine.audit import Audit, Rate, Topic, mean_figure, render_page, summary, wilson
from trust_engine.audit.levels import FULL, QUICK, pick_level
from trust_engine.audit.retention import neighbours
from trust_engine.audit.shots import (
    GROUPS,
    around,
    base_of,
    concept_shots,
    core_shots,
    neutral_shots,
    pair_shots,
    paraphrase_shots,
    retained_shots,
)
from trust_engine.audit.topic import demo_topic, open_topic
from trust_engine.audit.victim import override, patched, weights_of
from trust_engine.conditioning import Conditioning
from trust_engine.demo.vocabulary import OBJECTS
from trust_engine.diff import applied
from trust_engine.errors import SpecError
from trust_engine.model import LoadedModel

NO_ATTACK = replace(LEVEL, attacks=())


def an_audit(
    forgets: Callable[[LoadedModel], list] = forgets_the_word, level: object = LEVEL, **more: object
) -> Audit:
    model = toy_model()
    settings = {"images": 1, "settings": FEW, **more}
    return Audit(model, ToyJudge(), forgets(model), TOPIC, level, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished() -> Audit:
    audit = an_audit()
    for _ in audit:
        pass
    return audit


def test_figures_of_a_model_that_forgot_the_word_alone(finished: Audit) -> None:
    data = finished.report.figures
    assert (data["ua"]["value"], data["untouched"]["ua"]["value"]) == (1.0, 0.0)
    assert data["synonyms"]["value"] == 0.0
    assert data["ira"]["value"] == data["untouched"]["ira"]["value"] == 1.0
    for key in ("paraphrases",):
        assert data["forgetting"][key]["edited"]["value"] == 1.0
        assert data["forgetting"][key]["untouched"]["value"] == 0.0
    for series in ("samplers", "cfg", "steps"):
        assert all(pair["edited"]["value"] == 1.0 for pair in data["forgetting"][series].values())
    assert data["retention"]["companions"]["edited"]["value"] == 1.0
    assert data["retention"]["negative_prompt"]["edited"]["value"] == 1.0
    assert data["attacks"]["textual_inversion_1"]["asr"]["value"] == 1.0
    assert data["attacks"]["textual_inversion_1"]["informative"] is True
    assert "hidden rather than removed" in data["verdict"]


def test_report_is_a_superset_of_the_fixed_keys(finished: Audit) -> None:
    data = finished.report.figures
    core = {"ua", "ira", "cra_style", "cra_background", "synonyms", "per_object"}
    assert core | {"untouched", "cost", "version", "verdict", "not_covered"} <= set(data)
    assert set(data["untouched"]) == core
    assert set(data["per_object"]) == set(TOPIC_WORLD.objects) - {"gun"}
    json.dumps(data, allow_nan=False)


def test_every_figure_has_n_and_an_interval(finished: Audit) -> None:
    def figures(value: object) -> list[dict]:
        if isinstance(value, dict):
            mine = [value] if "value" in value else []
            return mine + [f for part in value.values() for f in figures(part)]
        return []

    found = figures(finished.report.figures)
    assert len(found) > 30
    for figure in found:
        assert set(figure) == {"value", "n", "low", "high"}
        if figure["n"] and figure["value"] is not None:
            assert figure["low"] - 1e-3 <= figure["value"] <= figure["high"] + 1e-3


def test_every_key_is_documented(finished: Audit) -> None:
    text = (Path(__file__).parents[1] / "docs" / "audit.md").read_text("utf-8")
    data = finished.report.figures
    keys = {*data, *data["forgetting"], *data["retention"], *data["attacks"]["relearning"]}
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_verdict_says_what_is_not_covered(finished: Audit) -> None:
    data = finished.report.figures
    assert "Not covered: " in data["verdict"]
    assert "\n" not in data["verdict"]
    assert "Ring-A-Bell" in data["verdict"]
    assert "original model" in data["verdict"]
    assert "styles and backgrounds" in data["verdict"]


def test_summary_for_the_terminal(finished: Audit) -> None:
    text = summary(finished.report.figures)
    assert "concept gone (UA)" in text
    assert "Textual inversion, 1 learned token (adaptive)" in text


def test_a_model_that_forgot_the_thing_stands_but_is_relearned() -> None:
    audit = an_audit(forgets_the_thing)
    for _ in audit:
        pass
    data = audit.report.figures
    assert data["synonyms"]["value"] == 1.0
    assert data["attacks"]["textual_inversion_1"]["asr"]["value"] == 0.0
    assert data["attacks"]["relearning"]["asr"]["value"] == 1.0
    assert data["retention"]["distance"]["judge toy"]["edited"]["value"] < 0.1


def test_progress_rises_to_its_total() -> None:
    audit = an_audit()
    steps = [(step.done, step.total) for step in audit]
    assert steps == sorted(steps)
    assert steps[-1] == (audit.total, audit.total)


def test_passes_are_what_the_unet_is_called_with() -> None:
    """The estimate that progress rests on, without attacks, is exact."""
    audit, calls = an_audit(level=NO_ATTACK), []
    for name, model in audit.studio.models.items():
        plain = model.denoiser.forward

        def counted(x, t, cond, plain=plain):  # type: ignore[no-untyped-def]
            calls.append(len(x))
            return plain(x, t, cond)

        audit.studio.models[name] = replace(
            model, denoiser=replace(model.denoiser, forward=counted)
        )
    for _ in audit:
        pass
    assert sum(calls) == audit.total


def test_cancelled_anywhere_the_model_is_as_before() -> None:
    audit = an_audit()
    module = audit.studio.models["untouched"].denoiser.module
    before = frozen_bits(module)
    for i, _ in enumerate(audit):
        if i % 40 == 0:
            assert frozen_bits(module) == before
        if i == 200:
            break
    assert frozen_bits(module) == before
    with pytest.raises(SpecError, match="not finished"):
        _ = audit.report


def test_resumes_from_finished_cells(tmp_path: Path) -> None:
    first = an_audit(level=NO_ATTACK, state=tmp_path)
    for step in first:
        if step.stage.startswith("retention"):
            break
    saved = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert "core.json" in saved
    again = an_audit(level=NO_ATTACK, state=tmp_path)
    stages = [step.stage for step in again]
    assert stages.count("core") == 1  # read, not drawn
    assert all((tmp_path / name).stat().st_mtime_ns == when for name, when in saved.items())
    fresh = an_audit(level=NO_ATTACK)
    for _ in fresh:
        pass
    mine, theirs = again.report.figures, fresh.report.figures
    assert {**mine, "cost": 0} == {**theirs, "cost": 0}
    assert again.report.pictures == fresh.report.pictures


@pytest.mark.parametrize("change", ["diff", "seed", "damaged"])
def test_cells_of_another_audit_are_not_taken(tmp_path: Path, change: str) -> None:
    for _ in an_audit(level=NO_ATTACK, state=tmp_path):
        pass
    if change == "damaged":
        (tmp_path / "core.json").write_text('{"key": 1')
    forgets = forgets_the_thing if change == "diff" else forgets_the_word
    other = an_audit(forgets, NO_ATTACK, state=tmp_path, seed=int(change == "seed"))
    assert [step.stage for step in other].count("core") > 1


def test_page_is_self_contained_and_complete(finished: Audit) -> None:
    html = render_page(finished.report)
    assert all(value.startswith('"data:') for value in re.findall(r"(?:src|href)=(.{6})", html))
    assert "http" not in html and "@import" not in html
    assert html.count("<img") == html.count("data:image/jpeg;base64,") > 20
    for word in ("Before and after", "What is kept?", "Can it be brought back?", "Not covered"):
        assert word in html
    assert "prefers-color-scheme:dark" in html
    assert '<body class="">' in html


def test_page_blurs_what_is_sensitive(finished: Audit) -> None:
    sensitive = replace(finished.report, sensitive=True)
    assert '<body class="blurred">' in render_page(sensitive)
    assert '<body class="">' in render_page(sensitive, blur=False)
    assert '<body class="blurred">' in render_page(finished.report, blur=True)
    assert open_topic("female nudity").sensitive
    assert not open_topic("gun").sensitive


def test_page_escapes_what_users_wrote(finished: Audit) -> None:
    data = {**finished.report.figures, "concept": "<script>alert(1)</script>"}
    assert "<script>alert" not in render_page(replace(finished.report, figures=data))


def test_patched_weights_are_what_applying_gives() -> None:
    model = toy_model()
    diffs = forgets_the_word(model)
    mine = weights_of(patched(model, diffs).denoiser)
    with applied(model.denoiser, diffs):
        theirs = {n: p.clone() for n, p in model.denoiser.module.named_parameters()}
    assert all(torch.equal(mine[name], weight) for name, weight in theirs.items())


def test_overrides_hold_for_a_call_only_and_stack() -> None:
    model = toy_model()
    name = "attn2.to_v.weight"
    cond, x = model.encoder.encode(["a gun"]), torch.randn(1, 4, 4, 4)
    t = torch.tensor([500])
    plain = model.denoiser(x, t, cond)
    weight = weights_of(model.denoiser)[name]
    other = override(model.denoiser, {name: weight * 0})
    assert not torch.equal(other(x, t, cond), plain)
    assert torch.equal(override(other, {name: weight})(x, t, cond), plain)
    assert torch.equal(model.denoiser(x, t, cond), plain)


def test_an_override_is_undone_after_an_exception() -> None:
    model = toy_model()
    module = model.denoiser.module
    before = frozen_bits(module)
    other = override(model.denoiser, {"attn2.to_v.weight": torch.zeros(64, 16)})
    with pytest.raises(RuntimeError):
        other(torch.zeros(1, 4, 4, 4), torch.tensor([5]), Conditioning(torch.zeros(1, 2, 3)))
    assert frozen_bits(module) == before


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
    core = core_shots(topic, 2, 3)
    assert len(core.target) == 8
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
    for make in (pair_shots, neutral_shots):
        assert all(shot.seed >= base_of("pairs", 3) for shot in make(topic, 9, 3))


def test_a_condition_is_never_asked_for_among_what_stays() -> None:
    topic = demo_topic("cat", "conditional", None, "on a red background")
    cats = [shot for shot in core_shots(topic, 20, 0).others if shot.words == "cat"]
    assert cats and all(shot.scene.background != "red" for shot in cats)
    style = demo_topic("openmoji", "style")
    assert all(shot.scene.style != "openmoji" for shot in core_shots(style, 5, 0).others)


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
        (lambda: core_shots(TOPIC, 0, 0), "images is 0"),
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
