"""Robust mode: a run that scrubs from pictures, and then trains what is left."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from toys.tiny import content, frozen_bits, tiny_model, tiny_spec
from trust_engine.diff import WeightDiff, applied, load_diff, save_diff
from trust_engine.errors import SpecError
from trust_engine.frontend.run_report import run_report
from trust_engine.models.contract import LentModel
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.autosave import Keeping
from trust_engine.unlearn.run import StepReport, Unlearning
from trust_engine.unlearn.run_state import load_state, save_state
from trust_engine.unlearn.run_store import RunStore
from trust_engine.unlearn.scrubbing import picture_stage, run
from trust_engine.unlearn.scrubbing.blocks import picture_layers
from trust_engine.unlearn.scrubbing.pictures import recipe_of
from trust_engine.unlearn.trajectory import sampler_of

PASSES = 30  # a twentieth of the usual: half a dozen pictures
GUN, BOMB = ConceptSpec(("gun",)), ConceptSpec(("bomb",))


@pytest.fixture(autouse=True)
def _low_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random UNet has next to nothing of a concept's own: take what there is."""
    monkeypatch.setattr(run.ScrubPlan.__init__, "__defaults__", _lower())


def _lower() -> tuple[object, ...]:
    defaults = list(run.ScrubPlan.__init__.__defaults__ or ())
    defaults[0] = 1.3
    return tuple(defaults)


def robust_spec(**changes: object) -> UnlearnSpec:
    """Ask for a run on a few pictures."""
    return tiny_spec(**{"robust": True, "passes": PASSES, "rate": 0.1, **changes})


def ran(model: LentModel | None = None, **changes: object) -> Unlearning:
    """Run to the end."""
    made = Unlearning(model or tiny_model(), robust_spec(**changes))
    for _ in made:
        pass
    return made


@lru_cache
def watched() -> tuple[Unlearning, list[StepReport]]:
    """Run once for all tests that only look."""
    made = Unlearning(tiny_model(), robust_spec())
    return made, list(made)


def whole() -> Unlearning:
    """Return the run for all tests that only look."""
    return watched()[0]


def test_it_changes_layers_all_over_the_unet_by_a_few_directions(tmp_path: Path) -> None:
    made, fresh = whole(), tiny_model()
    assert frozen_bits(made.model.denoiser.module) == frozen_bits(fresh.denoiser.module)
    low_rank = {key for key, offset in made.diff.offsets.items() if offset.factors is not None}
    trained = {key for key, offset in made.diff.offsets.items() if offset.sparse is not None}
    assert low_rank and low_rank <= set(picture_layers(fresh.denoiser))
    assert trained <= {f"{name}.weight" for name in made.neurons}
    # The queries are what both change: there are some, and layers of each alone, in this diff.
    assert low_rank & trained and low_rank - trained and trained - low_rank
    for key in low_rank:
        offset = made.diff.offsets[key]
        weight = fresh.denoiser.module.get_parameter(fresh.denoiser.parameter_name(key))
        assert offset.factors is not None and len(offset.factors[1]) < weight.shape[1]
        assert offset.shape == weight.shape
    save_diff(made.diff, tmp_path / "robust.safetensors")
    assert content(load_diff(tmp_path / "robust.safetensors")) == content(made.diff)


def test_what_is_trained_is_the_scrubbed_model() -> None:
    """The run without `robust`, on the model under the scrubbing's diff, trains the same bits."""
    made, model = whole(), tiny_model()
    assert made.results.scrubbed is not None
    scrubbed = WeightDiff(dict(made.results.scrubbed.offsets), made.diff.provenance)
    with applied(model.denoiser, [(scrubbed, 1.0)]):
        second = ran(model, robust=False)
    assert second.results.offsets.keys() == made.results.offsets.keys()
    for key, offset in made.results.offsets.items():
        assert torch.equal(offset.indices, second.results.offsets[key].indices)
        assert torch.equal(offset.values, second.results.offsets[key].values)
    assert second.curves == made.curves and second.final == made.final


def test_the_diff_is_what_was_scrubbed_and_trained() -> None:
    """Under the diff the model draws something else, and after it what it drew before."""
    made, model = whole(), tiny_model()
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([300, 300])
    cond = model.encoder.encode(["a gun", "a cat"])
    with torch.no_grad():
        before = model.denoiser(x, t, cond)
        with applied(model.denoiser, [(made.diff, 1.0)]):
            assert not torch.equal(model.denoiser(x, t, cond), before)
        assert torch.equal(model.denoiser(x, t, cond), before)
    scrubbed = made.results.scrubbed
    assert scrubbed is not None and 0 < scrubbed.left < 1 and 0 < scrubbed.harm
    assert 0 < made.effect < 1


def test_the_same_seed_gives_the_same_diff_and_counts_are_true() -> None:
    one, two = whole(), ran()
    assert content(one.diff) == content(two.diff)
    samples, drawn = recipe_of(one.spec).samples(1), 24 * one.drawn  # 12 steps, guided
    lists = picture_stage.lists_of(one.spec, one.prompts)
    assert one.drawn == sum(lists.counts) + lists.counts[0]  # the concept's anchors, too
    plan = picture_stage.relabel_plan(one.spec)
    assert (plan.passes, plan.backward) == (36 * plan.steps, 24 * plan.steps)
    assert one.backward == plan.backward
    recorded = sampler_of(one.plan).passes(one.recorded)
    updates = len(one.final) * one.plan.steps
    relabelled = plan.passes + 2 * plan.backward
    assert one.total == one.asking + drawn + 2 * samples + relabelled + recorded + updates
    besides = drawn + plan.passes + recorded
    assert besides + 1.5 * samples < one.passes <= besides + 2 + 2 * samples
    assert content(ran(seed=1).diff) != content(one.diff)


def test_reports_rise_to_the_total_and_say_what_is_at_work() -> None:
    made, reports = watched()
    done = [report.done for report in reports]
    assert done == sorted(done) and done[-1] == made.total
    passes = [report.passes for report in reports]
    assert passes == sorted(passes) and passes[-1] == made.passes
    stages = list(dict.fromkeys(report.stage.split()[0] for report in reports))
    assert stages == ["asking", "drawing", "scrubbing", "relabelling", "recording", "unlearning"]
    assert any(report.stage.startswith("scrubbing input_blocks") for report in reports)
    assert all(r.standing is not None for r in reports if r.stage.startswith("unlearning"))
    assert {len(curve) for curve in made.curves.values()} == {made.steps}
    assert made.failure is None


STOPS = {
    "drawing": 3, "scrubbing middle_block": 3, "scrubbing out": 3, "relabelling": 1,
    "recording": 1, "unlearning": 5,
}  # fmt: skip


@pytest.mark.parametrize("stop", STOPS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, stop: str) -> None:
    first, calls = Unlearning(tiny_model(), robust_spec()), 0
    for report in first:
        calls += report.stage.startswith(stop)
        if calls == STOPS[stop]:
            break
    save_state(first.state, tmp_path / "state")
    state = load_state(tmp_path / "state")
    second = Unlearning(tiny_model(), robust_spec(), state)
    share, asked, total = second.behind(state), second.asking, second.total
    done = [report.done for report in second]
    # What was asked is not asked again; the block at work begins again.
    assert 0 < share < 1 and done[0] >= share * total - asked - 1
    assert content(second.diff) == content(whole().diff)
    assert second.passes == whole().passes and second.curves == whole().curves
    assert second.final == whole().final and second.neurons == whole().neurons
    assert second.results.scrubbed is not None and whole().results.scrubbed is not None
    assert second.results.scrubbed.figures == whole().results.scrubbed.figures


def test_a_finished_run_is_taken_over_from_the_store(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    for again in (False, True):
        made = Unlearning(tiny_model(), robust_spec())
        with Keeping(made, store) as kept:
            for _ in kept:
                pass
            assert kept.recalled == again
            assert content(made.diff) == content(whole().diff)


def test_two_concepts_are_both_taken_out() -> None:
    both = ran(concepts=(GUN, BOMB))
    assert both.lists is not None
    gun, bomb = both.lists.concepts
    assert all("gun" in prompt for prompt in gun) and all("bomb" in prompt for prompt in bomb)
    assert both.diff.directions > whole().diff.directions


def test_the_users_own_pictures_of_what_must_stay_are_drawn() -> None:
    """In place of the engine's, as many as there are; the concept's, and its anchors, as ever."""
    mine = ("a cat with a hat, red", "a tree", "a tree", "a dog beside a house")
    made, usual = ran(stays=mine), whole()
    assert made.lists is not None and usual.lists is not None
    assert made.lists.rest == mine != usual.lists.rest
    assert made.lists.concepts == usual.lists.concepts
    assert made.lists.anchors == usual.lists.anchors
    assert made.drawn == 2 * len(made.lists.concepts[0]) + len(mine)
    assert content(made.diff) != content(usual.diff)
    assert made.prompts == usual.prompts  # what is trained on states stays as it is
    assert made.diff.provenance["spec"] == robust_spec(stays=mine).to_json()


def test_the_report_says_what_was_drawn() -> None:
    made = ran(stays=("a cat", "a tree"))
    lines = run_report(made, made.diff, None).lines
    shown = len(made.lists.concepts[0]) if made.lists else 0
    assert f"Drawn: {shown} of gun; 2 of what must stay, such as a cat, a tree." in lines
    plain = Unlearning(tiny_model(), tiny_spec())
    for _ in plain:
        pass
    assert not any(line.startswith("Drawn") for line in run_report(plain, plain.diff, None).lines)


def test_a_picture_whose_prompt_is_too_long_is_refused() -> None:
    long = " ".join(["red"] * 76)
    with pytest.raises(SpecError, match="prompt has 76 tokens, at most 75 fit"):
        Unlearning(tiny_model(), robust_spec(stays=("a cat", long)))


def test_what_has_no_looks_of_its_own_is_refused() -> None:
    pair = ConceptSpec(("dog",), "combination", companion="cat")
    with pytest.raises(SpecError, match=r"robust cannot take .dog with cat. out of pictures"):
        Unlearning(tiny_model(), robust_spec(concepts=(pair,)))
    Unlearning(tiny_model(), replace(robust_spec(concepts=(pair,)), robust=False))


@pytest.mark.parametrize("setting", [{"engine": "global"}, {"saliency": "noise"}])
def test_what_it_would_pass_over_is_refused(setting: dict[str, str]) -> None:
    with pytest.raises(SpecError, match=r"robust .* and passes over"):
        Unlearning(tiny_model(), robust_spec(**setting))
    Unlearning(tiny_model(), replace(robust_spec(**setting), robust=False))


def test_nothing_that_stands_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_stage, "_rows", lambda model: 12)
    monkeypatch.setattr(
        picture_stage, "ScrubPlan", lambda batch=12: run.ScrubPlan(tau=1e6, batch=batch)
    )
    made = Unlearning(tiny_model(), robust_spec())
    with pytest.raises(SpecError, match="nothing in the pictures of 'gun' stands out"):
        list(made)


def test_what_it_takes_is_told_before() -> None:
    model, spec = tiny_model(), robust_spec()
    widest = max(layer.weight.shape[1] for layer in picture_layers(model.denoiser).values())  # type: ignore[union-attr,index]
    assert picture_stage.memory_of(model, spec) > 2 * 4 * widest**2
    more = picture_stage.memory_of(model, replace(spec, concepts=(GUN, BOMB)))
    assert more > picture_stage.memory_of(model, spec)
    assert picture_stage.flops_of(model.denoiser, spec) > 12 * widest**3
