"""Runs of every kind: concepts, engines, saliencies; resumed, diverged, stopped early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine.unlearn.test_unlearn import finish, saved

from toys.small_unet import KEY, low_rank, numbers, scrubbed_diff
from toys.tiny import frozen_bits, tiny_model, tiny_spec
from trust_engine.diff import LowRankOffset, Offset, applied, save_diff
from trust_engine.errors import DivergenceError, SpecError
from trust_engine.models.attention import cross_attention_modules, read_layer
from trust_engine.spec import ConceptSpec
from trust_engine.unlearn.run import StepReport, Unlearning
from trust_engine.unlearn.run_state import load_state, save_state

KINDS = {
    "single": ConceptSpec(("gun",)),
    "combination": ConceptSpec(("cat",), "combination", companion="beer"),
    "conditional": ConceptSpec(("cat",), "conditional", condition="on a red car"),
    "style": ConceptSpec(("noto",), "style"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_runs_within_its_passes(kind: str) -> None:
    run, _ = finish(tiny_model(), tiny_spec(concepts=(KINDS[kind],), passes=60, xi=0.0))
    assert run.diff.changed > 0
    assert run.passes <= 60
    assert run.spec.name in str(run.diff.provenance["spec"]) or kind != "single"


def test_several_concepts_go_in_one_run() -> None:
    model, xi = tiny_model(), 0.0
    both = (KINDS["single"], ConceptSpec(("dog",)))
    spec = tiny_spec(concepts=both, steps=30, budget=0.3, xi=xi, beta=0.0, passes=80)
    run, _ = finish(model, spec)
    assert not any("gun" in p or "dog" in p for p in run.prompts.preserve)
    for target, anchor in zip(run.prompts.targets, run.prompts.anchors, strict=True):
        if target not in ("a gun", "a dog"):
            continue
        now, goal = model.encoder.encode([target, anchor]).context.split(1)
        for module in cross_attention_modules(model.denoiser).values():
            torch.manual_seed(0)
            x, base = torch.randn(1, 50, module.to_q.in_features), read_layer(module)
            before = (base(x, now) - base(x, goal)).square().mean()
            with applied(model.denoiser, [(run.diff, 1.0)]):
                after = (read_layer(module)(x, now) - base(x, goal)).square().mean()
            assert after < 0.6 * before


@pytest.mark.parametrize("saliency", ["attention", "noise"])
@pytest.mark.parametrize("engine", ["local", "global"])
def test_both_engines_take_every_saliency(engine: str, saliency: str) -> None:
    model = tiny_model()
    before = frozen_bits(model.denoiser.module)
    run, reports = finish(model, tiny_spec(engine=engine, saliency=saliency))
    assert 0 < run.diff.share <= run.spec.budget
    assert reports[-1].done == reports[-1].total
    assert (run.backward == 0) == (engine == "local" and saliency == "attention")
    assert frozen_bits(model.denoiser.module) == before


def test_a_clip_score_finds_neurons() -> None:
    """The concept's score is the latents' own mean here; entries that move it are found."""
    model = replace(tiny_model(), score=lambda x0, prompts: x0.mean((1, 2, 3)))
    run, _ = finish(model, tiny_spec(saliency="clip"))
    assert run.diff.changed > 0 and run.backward > 0


@pytest.fixture(
    scope="module",
    params=[
        {},
        {"engine": "global"},
        {"saliency": "noise"},
        {"schedule": "shrinking", "steps": 6},
    ],
)
def undisturbed(request: pytest.FixtureRequest) -> tuple[Unlearning, list[StepReport]]:
    """Run once to the end, for all tests that stop another one on the way."""
    return finish(tiny_model(), tiny_spec(**request.param))


@pytest.mark.parametrize("at", ["first", "middle", "last"])
def test_a_run_goes_on_from_its_state(
    undisturbed: tuple[Unlearning, list[StepReport]], at: str, tmp_path: Path
) -> None:
    """To the same bytes, through a file, on a fresh copy of the model."""
    whole, reports = undisturbed
    spec = whole.spec
    work = [i for i, report in enumerate(reports) if report.standing is not None]
    stop = {"first": work[0], "middle": work[len(work) // 2], "last": work[-1]}[at]
    half = Unlearning(tiny_model(), spec)
    for i, _ in enumerate(half):
        if i == stop:
            save_state(half.state, tmp_path / "state")
            break
    again = Unlearning(tiny_model(), spec, load_state(tmp_path / "state"))
    more = list(again)
    assert len(more) < len(reports)
    assert all(report.stage != "recording" for report in more)
    assert saved(again.diff, tmp_path) == saved(whole.diff, tmp_path)


def test_a_state_keeps_offsets_of_low_rank(tmp_path: Path) -> None:
    """With and without single entries on top, to the bit; damaged ones are refused."""
    run = Unlearning(tiny_model(), tiny_spec())
    next(report for report in run if report.standing is not None)
    offsets: Mapping[str, Offset] = scrubbed_diff().offsets
    state = replace(run.state, offsets=offsets)
    save_state(state, tmp_path / "state")
    again = load_state(tmp_path / "state").offsets
    assert {key: numbers(again[key]) for key in again} == {
        key: numbers(offsets[key]) for key in offsets
    }
    assert (
        state.size
        > replace(state, offsets={}).size
        + sum(len(data) for offset in offsets.values() for _, data in numbers(offset).values())
        - 1
    )
    good = low_rank((4, 6), 2)
    for up, down in (
        (good.up[:, :1], good.down),
        (good.up * torch.inf, good.down),
        (good.up.half(), good.down),
    ):
        bad = {KEY: LowRankOffset(up, down)}
        save_state(replace(run.state, offsets=bad), tmp_path / "bad")
        with pytest.raises(SpecError, match="the state is damaged"):
            load_state(tmp_path / "bad")


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    run = Unlearning(tiny_model(), tiny_spec())
    with pytest.raises(SpecError, match="nothing to resume"):
        _ = run.state
    list(run)
    for model, spec, message in (
        (tiny_model(), tiny_spec(seed=5), "another spec"),
        (tiny_model(seed=5), tiny_spec(), "another model"),
    ):
        with pytest.raises(SpecError, match=message):
            list(Unlearning(model, spec, run.state))
    (tmp_path / "state").write_bytes(b"no state")
    with pytest.raises(SpecError):
        load_state(tmp_path / "state")
    save_diff(run.diff, tmp_path / "diff")
    with pytest.raises(SpecError, match="not the state of a run"):
        load_state(tmp_path / "diff")


def test_divergence_keeps_the_last_good_state() -> None:
    run = Unlearning(tiny_model(), tiny_spec(steps=6))
    with pytest.raises(DivergenceError, match="not finite at step 3 of 6; lower rate"):
        for report in run:
            if report.standing is not None and run._piece is not None:
                forgetting = run._piece[1]
                if forgetting.done == 2:
                    forgetting.problem.scale.fill_(float("nan"))  # type: ignore[attr-defined]
    diff = run.last_good
    assert diff.changed > 0
    assert diff.provenance["complete"] is False
    assert all(bool(o.values.isfinite().all()) for o in diff.offsets.values())
    with pytest.raises(SpecError, match="not finished"):
        _ = run.diff


def test_a_run_that_diverges_before_its_mask_has_settled_keeps_to_the_budget() -> None:
    run = Unlearning(tiny_model(), tiny_spec(steps=6, schedule="shrinking"))
    with pytest.raises(DivergenceError):
        for report in run:
            if report.standing is not None and run._piece is not None:
                assert report.standing.share == 1
                run._piece[1].problem.scale.fill_(float("nan"))  # type: ignore[attr-defined]
    assert 0 < run.last_good.share <= run.spec.budget


def test_a_run_stops_early_when_the_effect_is_small_and_the_rest_is_kept() -> None:
    _, reports = finish(tiny_model(), tiny_spec(steps=6))
    early, fewer = finish(tiny_model(), tiny_spec(steps=6, stop_effect=10.0, stop_harm=10.0))
    assert len(fewer) < len(reports)
    assert early.diff.changed > 0
    assert fewer[-1].done == fewer[-1].total
    _, more = finish(tiny_model(), tiny_spec(steps=6, stop_effect=10.0, stop_harm=0.0))
    assert len(more) == len(reports)


def test_no_neuron_at_all_is_said() -> None:
    with pytest.raises(SpecError, match="lower xi"):
        finish(tiny_model(), tiny_spec(xi=100.0))


def test_a_run_stopped_within_a_step_begins_that_piece_again(tmp_path: Path) -> None:
    spec = tiny_spec()
    whole, _ = finish(tiny_model(), spec)
    half = Unlearning(tiny_model(), spec)
    steps = 0
    with pytest.raises(KeyboardInterrupt):
        for report in half:
            if report.standing is not None:
                steps += 1
            if steps == 5 and half._piece is not None:
                half._piece[1].optimiser.step = _interrupt  # type: ignore[method-assign]
    save_state(half.state, tmp_path / "state")
    again, _ = (lambda run: (run, list(run)))(
        Unlearning(tiny_model(), spec, load_state(tmp_path / "state"))
    )
    assert saved(again.diff, tmp_path) == saved(whole.diff, tmp_path)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
