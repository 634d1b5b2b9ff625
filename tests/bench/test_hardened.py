"""Robust mode: pictures of the concept are seen as something else, whatever the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import trust_engine.unlearn.robust as robust
from trust_engine.unlearn.robust import (
    EARLIEST,
    MEASURED_BATCH,
    PASSES,
    SCALED,
    SEEN,
    Hardening,
    RobustProblem,
    draw,
    erased_of,
    every_weight,
    pictured,
)

from toys.tiny import content, frozen_bits, tiny_model, tiny_spec
from trust_engine import seeds
from trust_engine.diff import applied
from trust_engine.models.contract import LentModel, projections
from trust_engine.prompts.concept import PromptSet
from trust_engine.spec import UnlearnSpec
from trust_engine.unlearn.problems import Problems
from trust_engine.unlearn.resolve import BUDGET, resolve
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.run_state import load_state, save_state

BATCH, DRAWN = 4, 6  # samples; passes a picture
MEASURED = 3  # batches of the concept and as many of the rest


def robust_spec(**changes: object) -> UnlearnSpec:
    """Ask for a run on a dozen pictures."""
    return tiny_spec(**{"robust": True, "passes": 7, "rate": 0.5, "beta": 0.5, **changes})


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robust, "BATCH", BATCH)
        patch.setattr(robust, "DRAWING_STEPS", DRAWN // 2)
        patch.setattr(robust, "MEASURED", MEASURED)
        yield


def ran(model: LentModel, **changes: object) -> Unlearning:
    """Run to the end."""
    run = Unlearning(model, robust_spec(**changes))
    for _ in run:
        pass
    return run


@pytest.fixture(scope="module")
def long() -> Unlearning:
    """Run once for all tests that only look."""
    return ran(tiny_model(), steps=20)


@pytest.fixture
def problem(long: Unlearning) -> RobustProblem:
    """Return what it trained on."""
    assert isinstance(long.ground, Problems)
    return long.ground.robust


def test_it_starts_at_1_and_harms_nobody(problem: RobustProblem) -> None:
    with torch.no_grad():
        starts = [float(problem.effect(problem.base, -1 - i)) for i in range(SCALED)]
        assert float(problem.harm(problem.base, 0)) == pytest.approx(0, abs=1e-9)
    assert sum(starts) / len(starts) == pytest.approx(1, abs=1e-4)


def test_it_forgets_with_all_kinds_of_weights_within_the_budget(
    long: Unlearning, problem: RobustProblem
) -> None:
    run, model = long, tiny_model()
    theta = problem.base + problem.layout.join(run.diff.offsets[k].dense() for k in problem.keys)
    with torch.no_grad():  # 1 on these batches at first
        left = [float(problem.effect(theta, -1 - i)) for i in range(SCALED)]
    assert sum(left) / SCALED < 0.85
    assert frozen_bits(run.model.denoiser.module) == frozen_bits(model.denoiser.module)
    qkv = set(projections(model.denoiser))
    assert qkv & set(run.diff.offsets) and set(run.diff.offsets) - qkv
    whole = sum(w.numel() for w, _ in every_weight(model.denoiser).values())
    assert 0.5 * BUDGET * whole < run.diff.changed <= BUDGET * whole
    assert set(run.neurons) == {key.removesuffix(".weight") for key in qkv}


def test_the_diff_does_what_was_learned(long: Unlearning, problem: RobustProblem) -> None:
    """Noised pictures of the concept are seen as the anchor's, also under prompts not trained."""
    run, model = long, tiny_model()
    x0, goal = problem.concept.x0, problem.erased.goal
    assert goal is not None
    stranger = model.encoder.encode(["words nobody trained on"] * len(x0))
    t = torch.full((len(stranger),), 300)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    x = model.denoiser.schedule.noised(x0, t, noise)

    def far() -> float:
        with torch.no_grad():
            seen, _ = model.denoiser.schedule.split(x, t, model.denoiser(x, t, stranger).float())
        return float((seen - goal[: len(x0)]).square().mean())

    untouched = far()
    with applied(model.denoiser, [(run.diff, 1.0)]):
        assert far() < 0.9 * untouched


def test_fisher_information_is_the_mean_squared_gradient(problem: RobustProblem) -> None:
    """Worked out anew for one weight, batch by batch."""
    found = problem.fisher(problem.kept)
    base, *rest = problem.layout.split(problem.base)
    chance, total = seeds.generator(seeds.fisher(0)), torch.zeros_like(base)
    for _ in range(MEASURED):
        some = torch.randint(len(problem.kept.x0), (MEASURED_BATCH,), generator=chance)
        t = torch.randint(EARLIEST, 1000, (MEASURED_BATCH,), generator=chance)
        noise = torch.randn(problem.kept.x0[some].shape, generator=chance)
        x = problem.denoiser.schedule.noised(problem.kept.x0[some], t, noise)
        weight = base.clone().requires_grad_()
        cond = problem.conditions.select(problem.kept.prompt[some])
        loss = (problem.predict(torch.cat([weight, *rest]), x, t, cond) - noise).square().mean()
        total += torch.autograd.grad(loss, weight)[0].square() / MEASURED
    torch.testing.assert_close(found[: len(total)], total)


def test_dampening_shrinks_what_stands_out_alone(
    problem: RobustProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robust, "STANDS_OUT", 2.0)
    own, rest = problem.fisher(problem.concept), problem.fisher(problem.kept)
    moved = problem.dampened()
    s, base = own > 2 * rest, problem.base
    assert 0 < int(s.sum()) < len(s) / 2
    assert not moved[~s].any()
    torch.testing.assert_close((base + moved)[s], (base * rest / own)[s], rtol=1e-4, atol=1e-7)


def test_a_run_starts_from_dampened_weights(problem: RobustProblem) -> None:
    run = Hardening(problem, resolve(robust_spec(rate=1e-6, steps=5)))
    start = problem.dampened()
    run.step()
    assert run.mask.current is not None
    kept = run.mask.current & (start != 0)
    assert int(kept.sum()) > 0
    torch.testing.assert_close(run.offset[kept], start[kept], rtol=1e-3, atol=1e-5)


def test_what_is_recognised_meets_other_prompts_and_noise_only_its_own(
    problem: RobustProblem,
) -> None:
    own = torch.zeros(400, dtype=torch.long)
    found = {}
    for name, t in (("seen", SEEN - 1), ("noise", SEEN)):
        generator = torch.Generator().manual_seed(1)
        told = problem._under(own, torch.full((400,), t), generator).context
        mine = problem.conditions.context[0]
        found[name] = sum(torch.equal(row, mine) for row in told) / 400
    assert found["noise"] == 1
    assert found["seen"] == pytest.approx(0.6, abs=0.08)


def test_an_anchors_picture_is_told_to_stay_what_it_is(problem: RobustProblem) -> None:
    """Under the concept's own prompt: what is drawn has turned away from it by then."""
    told, n = problem.erased, len(problem.concept.x0)
    assert told.goal is not None
    torch.testing.assert_close(told.x0[:n], problem.concept.x0)
    torch.testing.assert_close(told.x0[n:], told.goal[n:])
    torch.testing.assert_close(told.goal[:n], told.goal[n:])
    assert not torch.equal(told.x0[:n], told.x0[n:])
    assert told.prompt.tolist() == 2 * problem.concept.prompt.tolist()


def test_the_pictures_are_pairs_and_others(long: Unlearning) -> None:
    run, prompts, spec = long, long.prompts, long.spec
    chosen = pictured(prompts, spec)
    told = erased_of(len(chosen))
    assert len(chosen) == PASSES * spec.passes // DRAWN
    assert [i + len(prompts.targets) for i in chosen[:told]] == chosen[told : 2 * told]
    assert min(chosen[2 * told :]) >= 2 * len(prompts.targets)
    assert run.recorded == len(chosen)


@pytest.mark.parametrize("kept", [1, 5, 7, 14, 32])
def test_what_must_stay_is_drawn_evenly(kept: int) -> None:
    prompts = PromptSet(
        ("a gun",), ("a picture",), (0.0,), tuple(f"thing {i}" for i in range(kept))
    )
    stay = pictured(prompts, robust_spec())[2 * erased_of(11) :]
    assert stay and all(2 <= i < 2 + kept for i in stay)
    assert len(set(stay)) == min(kept, len(stay))


def test_concept_and_anchor_grow_from_the_same_noise() -> None:
    """Under one and the same prompt for both they are the same picture."""
    model, spec = tiny_model(), robust_spec(passes=5)
    cond, uncond = model.encoder.encode(["a gun"]), model.encoder.encode([""])
    for batch in (1, 8):
        *_, drawn = draw(model.denoiser, cond, uncond, [0] * 8, spec, (8, 8), batch)
        told, anchors, others = drawn.latents[:, 0].split([2, 2, 4])
        torch.testing.assert_close(told, anchors)
        assert all(not torch.equal(told[0], other) for other in others)
        assert drawn.passes == 8 * DRAWN


@pytest.mark.parametrize("kind", ["diffusers", "ldm"])
def test_the_same_seed_gives_the_same_diff_and_counts_are_true(kind: str) -> None:
    one, two = ran(tiny_model(kind)), ran(tiny_model(kind))
    assert content(one.diff) == content(two.diff)
    drawn = DRAWN * one.recorded
    # Some batches for the scale, as many of either that dampening looks at; then, a step: told,
    # kept, and kept by theta_0.
    looked = 2 * MEASURED * MEASURED_BATCH
    updates = resolve(one.spec).steps
    assert updates == 2 < one.spec.steps == 3
    assert one.passes == drawn + BATCH * SCALED + looked + updates * BATCH * 3
    assert one.backward == looked + updates * BATCH * 2
    assert one.knowledge is not None and one.knowledge.passes == one.asking > 0
    assert one.total == one.asking + drawn + updates, "asking is counted, and apart"


def test_another_seed_gives_another_diff() -> None:
    one, other = (ran(tiny_model(), steps=1, seed=seed) for seed in (0, 1))
    assert content(one.diff) != content(other.diff)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = ran(tiny_model(), steps=4)
    first = Unlearning(tiny_model(), robust_spec(steps=4))
    for report in first:
        if report.standing and report.done == report.total - 2:
            break
    save_state(first.state, tmp_path / "state")
    second = Unlearning(tiny_model(), robust_spec(steps=4), load_state(tmp_path / "state"))
    for _ in second:
        pass
    assert content(second.diff) == content(whole.diff)
    assert (second.passes, second.backward) == (whole.passes, whole.backward)


def test_settings_that_do_not_count_are_set_aside() -> None:
    odd = robust_spec(objective="zero", granularity="head", selection="random", budget=0.5)
    spec = resolve(odd)
    assert spec.shrinks and not spec.exact_hessian and not odd.exact_hessian
    assert spec.objective == "none" and spec.budget == 0.5
