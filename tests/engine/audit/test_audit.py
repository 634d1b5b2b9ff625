"""The audit: its figures on models known by heart, its report, cancel, resume, and its page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toys.audit_toy import (
    FEW,
    LEVEL,
    TOPIC,
    TOPIC_WORLD,
    ToyEncoder,
    ToyJudge,
    forgets_the_thing,
    forgets_the_word,
    toy_model,
)
from toys.tiny import frozen_bits
from trust_engine.audit import Audit, render_page, summary
from trust_engine.audit.state import identity
from trust_engine.audit.topic import open_topic
from trust_engine.errors import SpecError
from trust_engine.models.contract import Conditioning
from trust_engine.models.load import LoadedModel
from trust_engine.models.sampler import SamplerSettings

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
    moved = data["retention"]["objects_distance"]["judge toy"]
    assert moved["pictures"]["value"] < 0.01


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
    text = (Path(__file__).parents[3] / "docs" / "concepts" / "audit.md").read_text("utf-8")
    data = finished.report.figures
    keys = {*data, *data["forgetting"], *data["retention"], *data["attacks"]["relearning"]}
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_verdict_says_what_is_not_covered(finished: Audit) -> None:
    data = finished.report.figures
    assert "Not covered: " in data["verdict"]
    assert "\n" not in data["verdict"]
    assert "Ring-A-Bell" in data["verdict"] and "inversion (3 learned tokens)" in data["verdict"]
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
    for name, model in audit.context.models.items():
        plain = model.denoiser.forward

        def counted(x, t, cond, plain=plain):  # type: ignore[no-untyped-def]
            calls.append(len(x))
            return plain(x, t, cond)

        audit.context.models[name] = replace(
            model, denoiser=replace(model.denoiser, forward=counted)
        )
    for _ in audit:
        pass
    assert sum(calls) == audit.total


def test_cancelled_anywhere_the_model_is_as_before() -> None:
    audit = an_audit()
    module = audit.context.models["untouched"].denoiser.module
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
    assert [name for name in saved if name.startswith("core-")]
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


@pytest.mark.parametrize("change", ["diff", "seed", "cut", "edited", "key of another"])
def test_cells_of_another_audit_are_not_taken(tmp_path: Path, change: str) -> None:
    for _ in an_audit(level=NO_ATTACK, state=tmp_path):
        pass
    (core,) = tmp_path.glob("core-*.json")
    data = json.loads(core.read_text())
    if change == "cut":
        core.write_text('{"key": 1')
    elif change == "edited":
        core.write_text(json.dumps({**data, "seconds": 5.0}))
    elif change == "key of another":
        core.write_text(json.dumps({**data, "key": "0" * 32}))
    forgets = forgets_the_thing if change == "diff" else forgets_the_word
    other = an_audit(forgets, NO_ATTACK, state=tmp_path, seed=int(change == "seed"))
    assert [step.stage for step in other].count("core") > 1
    if change in ("diff", "seed"):
        assert core.is_file(), "both keep theirs in one folder"


@pytest.mark.parametrize("what", ["UNet", "text encoder", "decoder", "judge", "steps", "schedule"])
def test_cells_depend_on_all_that_draws_and_judges(what: str) -> None:
    """All models here share their q, k and v."""

    def named(model: LoadedModel, judge: Any, settings: SamplerSettings = FEW) -> str:
        audit = Audit(
            model, judge, forgets_the_word(model), TOPIC, NO_ATTACK, images=1, settings=settings
        )
        return identity(audit.context)

    plain = named(toy_model(), ToyJudge())
    assert named(toy_model(), ToyJudge()) == plain
    model, judge, settings = toy_model(), ToyJudge(), FEW
    extra = torch.nn.Parameter(torch.ones(1), requires_grad=False)
    if what == "UNet":
        model.denoiser.module.register_buffer("attn1", torch.ones(1))
    elif what == "text encoder":
        model = replace(model, encoder=LouderEncoder())  # type: ignore[arg-type]
    elif what == "decoder":
        model.decoder.register_parameter("conv", extra)
    elif what == "judge":
        judge.net = torch.nn.Linear(1, 1)
    elif what == "steps":
        settings = replace(FEW, steps=5)
    else:
        schedule = replace(model.denoiser.schedule, alphas=model.denoiser.schedule.alphas * 0.9)
        model = replace(model, denoiser=replace(model.denoiser, schedule=schedule))
    assert named(model, judge, settings) != plain


class LouderEncoder(ToyEncoder):
    """Reads the same words, a little louder."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to (b, LENGTH, D)."""
        return Conditioning(super().encode(prompts).context * 1.001)


def test_page_is_self_contained_and_complete(finished: Audit) -> None:
    html = render_page(finished.report)
    assert all(value.startswith('"data:') for value in re.findall(r"(?:src|href)=(.{6})", html))
    assert "http" not in html and "@import" not in html
    assert html.count("<img") == html.count("data:image/jpeg;base64,") > 20
    for word in ("Before and after", "What is kept?", "Can it be brought back?", "Not covered"):
        assert word in html
    high, wide = toy_model().latent_size
    assert f"pictures of {8 * wide} by {8 * high} pixels" in html
    assert "audit.json" not in html, "not every door writes one"
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
