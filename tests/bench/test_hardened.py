"""Robust by training: pictures of the concept are seen as something else, whatever is asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bench.baselines import hardened
from bench.baselines.common import Meter, Weights
from bench.baselines.hardened import (
    BUDGET,
    EARLIEST,
    MEASURED_BATCH,
    PASSES,
    SCALED,
    SEEN,
    Hardening,
    RobustProblem,
    draw,
    erase,
    erased_of,
    every_weight,
    pictured,
    plan_of,
    problem_of,
)
from toys.task import task_of
from toys.tiny import frozen_bits, tiny_model, tiny_spec
from trust_engine import seeds
from trust_engine.prompts.concept import PromptSet
from trust_engine.spec import Ablation, UnlearnSpec

BATCH, DRAWN = 4, 6  # samples; passes a picture
MEASURED = 3  # batches of the concept and as many of the rest
CHANGES = {"passes": 7, "rate": 0.5, "beta": 0.5, "trajectory_steps": 2}


def plan(**changes: object) -> UnlearnSpec:
    """Plan a training on a dozen pictures."""
    return plan_of(tiny_spec(**{**CHANGES, **changes}))


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardened, "BATCH", BATCH)
        patch.setattr(hardened, "DRAWING_STEPS", DRAWN // 2)
        patch.setattr(hardened, "MEASURED", MEASURED)
        yield


@pytest.fixture(scope="module")
def problem() -> RobustProblem:
    """Draw once for all tests that only look."""
    return problem_of(task_of(), plan())


@pytest.fixture(scope="module")
def erased() -> Weights:
    """Train once for all tests that only look."""
    return erase(task_of(), {**CHANGES, "steps": 20})


def test_it_starts_at_1_and_harms_nobody(problem: RobustProblem) -> None:
    with torch.no_grad():
        starts = [float(problem.effect(problem.base, -1 - i)) for i in range(SCALED)]
        assert float(problem.harm(problem.base, 0)) == pytest.approx(0, abs=1e-9)
    assert sum(starts) / len(starts) == pytest.approx(1, abs=1e-4)


def test_it_forgets_with_all_kinds_of_weights_within_the_budget(
    erased: Weights, problem: RobustProblem
) -> None:
    denoiser = problem.denoiser
    theta = problem.layout.join(erased[denoiser.parameter_name(key)] for key in problem.keys)
    with torch.no_grad():  # 1 on these batches at first
        left = [float(problem.effect(theta, -1 - i)) for i in range(SCALED)]
    assert sum(left) / SCALED < 0.85
    moved = int((theta != problem.base).sum())
    whole = sum(w.numel() for w, _ in every_weight(denoiser).values())
    assert 0.5 * BUDGET * whole < moved <= BUDGET * whole


def test_the_weights_do_what_was_learned(erased: Weights, problem: RobustProblem) -> None:
    """Noised pictures of the concept are seen as the anchor's, also under prompts not trained."""
    model = task_of().model
    x0, goal = problem.concept.x0, problem.erased.goal
    assert goal is not None
    stranger = model.encoder.encode(["words nobody trained on"] * len(x0))
    t = torch.full((len(stranger),), 300)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    x = model.denoiser.schedule.noised(x0, t, noise)
    far = []
    for one in (model, model.with_weights(erased)):
        with torch.no_grad():
            seen, _ = one.denoiser.schedule.split(x, t, one.denoiser(x, t, stranger).float())
        far.append(float((seen - goal[: len(x0)]).square().mean()))
    assert far[1] < 0.9 * far[0]


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
    monkeypatch.setattr(hardened, "STANDS_OUT", 2.0)
    own, rest = problem.fisher(problem.concept), problem.fisher(problem.kept)
    moved = problem.dampened()
    s, base = own > 2 * rest, problem.base
    assert 0 < int(s.sum()) < len(s) / 2
    assert not moved[~s].any()
    torch.testing.assert_close((base + moved)[s], (base * rest / own)[s], rtol=1e-4, atol=1e-7)


def test_a_run_starts_from_dampened_weights(problem: RobustProblem) -> None:
    run = Hardening(problem, plan(rate=1e-6, steps=5))
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


def test_the_pictures_are_pairs_and_others() -> None:
    prompts = task_of().prompts
    chosen = pictured(prompts, plan())
    told = erased_of(len(chosen))
    assert len(chosen) == PASSES * plan().passes // DRAWN
    assert [i + len(prompts.targets) for i in chosen[:told]] == chosen[told : 2 * told]
    assert min(chosen[2 * told :]) >= 2 * len(prompts.targets)


@pytest.mark.parametrize("kept", [1, 5, 7, 14, 32])
def test_what_must_stay_is_drawn_evenly(kept: int) -> None:
    prompts = PromptSet(
        ("a gun",), ("a picture",), (0.0,), tuple(f"thing {i}" for i in range(kept))
    )
    stay = pictured(prompts, plan())[2 * erased_of(11) :]
    assert stay and all(2 <= i < 2 + kept for i in stay)
    assert len(set(stay)) == min(kept, len(stay))


def test_concept_and_anchor_grow_from_the_same_noise() -> None:
    """Under one and the same prompt for both they are the same picture."""
    model, spec = tiny_model(), plan(passes=5)
    cond, uncond = model.encoder.encode(["a gun"]), model.encoder.encode([""])
    for batch in (1, 8):
        drawn = draw(model.denoiser, cond, uncond, [0] * 8, spec, (4, 4), batch)
        told, anchors, others = drawn.split([2, 2, 4])
        torch.testing.assert_close(told, anchors, rtol=1e-4, atol=1e-4)
        assert all(not torch.equal(told[0], other) for other in others)


def test_the_counts_are_true_and_the_model_is_left_alone() -> None:
    meter = Meter()
    task = task_of(meter=meter)
    before = frozen_bits(task.model.denoiser.module)
    erase(task, {**CHANGES, "steps": 3})
    assert frozen_bits(task.model.denoiser.module) == before
    pictures = PASSES * CHANGES["passes"] // DRAWN
    updates, looked = plan(steps=3).steps, 2 * MEASURED * MEASURED_BATCH
    assert updates == 2
    # Pictures; batches for the scale; those that dampening looks at; and of a step two batches
    # there and back, and one there.
    forward = DRAWN * pictures + BATCH * SCALED
    assert meter.passes == forward + 3 * looked + updates * BATCH * (3 + 3 + 1)


def test_settings_that_do_not_count_are_set_aside() -> None:
    odd = plan(
        objective="zero", ablation=Ablation(granularity="head", selection="random"), budget=0.5
    )
    assert odd.shrinks and not odd.exact_hessian
    assert odd.objective == "none" and odd.budget == 0.5
