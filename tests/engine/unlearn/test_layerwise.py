"""One layer forgets: it did know before, it does not know after, and the rest stays."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import traceback
from dataclasses import replace

import pytest
import torch

from toys.tiny import tiny_spec
from trust_engine.errors import DivergenceError
from trust_engine.models.attention import CrossAttention
from trust_engine.spec import UnlearnSpec
from trust_engine.unlearn.layerwise import LayerPairs, LayerProblem
from trust_engine.unlearn.mask import overlap, share
from trust_engine.unlearn.trainer import Metrics, SelectiveTrainer

PROMPTS, POSITIONS, D, C, TOKENS = 4, 96, 24, 64, 6


def layer() -> CrossAttention:
    """Make a random layer of four heads."""
    torch.manual_seed(1)
    q, k, v, out = (torch.randn(24, n) * n**-0.5 for n in (D, C, C, D))
    return CrossAttention(q, k, v, out, torch.zeros(D), heads=4)


def situations() -> tuple[LayerPairs, LayerPairs]:
    """Erase one token's row, in several prompts; keep the same prompts with other tokens there."""
    torch.manual_seed(2)
    concept, neutral, others = torch.randn(C), torch.randn(C), torch.randn(PROMPTS, C)
    context = torch.randn(PROMPTS, TOKENS, C)
    now, goal, kept = context.clone(), context.clone(), context.clone()
    now[:, 2], goal[:, 2], kept[:, 2] = concept, neutral, others
    x = torch.randn(2, PROMPTS, POSITIONS, D)
    rows = torch.arange(PROMPTS)
    return LayerPairs(x[0], rows, now, goal), LayerPairs(x[1], rows, kept)


def spec(**changes: object) -> UnlearnSpec:
    """Ask for enough steps to forget."""
    return tiny_spec(
        **{"steps": 80, "budget": 0.2, "rate": 0.15, "beta": 2.0, "xi": 0.0, **changes}
    )


def forgetting(wanted: UnlearnSpec, erase: LayerPairs, keep: LayerPairs) -> SelectiveTrainer:
    """Set a layer up."""
    problem = LayerProblem(layer(), erase, keep, wanted.eta, wanted.seed)
    return SelectiveTrainer(problem, wanted)


def run(wanted: UnlearnSpec) -> tuple[SelectiveTrainer, list[Metrics]]:
    """Train the layer to the end."""
    it = forgetting(wanted, *situations())
    return it, list(it)


def effect(theta: CrossAttention, part: LayerPairs, base: CrossAttention) -> float:
    """Measure the distance to the goal over all positions."""
    return float(
        (theta(part.x, part.now) - base(part.x, part.now if part.goal is None else part.goal))
        .square()
        .mean()
    )


@pytest.mark.parametrize("objective", ["none", "csr", "cip"])
def test_forgets_the_concept_and_keeps_the_rest(objective: str) -> None:
    done, steps = run(spec(objective=objective))
    assert steps[0].effect == pytest.approx(1, abs=0.15)  # a sample of positions, hence not exactly
    assert steps[0].harm == 0
    assert steps[-1].effect < 0.1
    assert steps[-1].harm < 0.1
    # The same, measured from outside: all positions, theta_0 + offset.
    base, (erase, keep) = layer(), situations()
    after = base.with_weights(*done.problem.layout.parts(done.problem.base + done.offset))
    before = effect(base, erase, base)
    assert effect(after, erase, base) < 0.1 * before
    assert effect(after, keep, base) < 0.1 * before


@pytest.mark.parametrize("budget", [1e-6, 0.03, 0.2])
def test_changes_stay_within_the_budget(budget: float) -> None:
    done, steps = run(spec(budget=budget, steps=20, xi=-10.0))
    entries, changed = len(done.offset), int(done.offset.count_nonzero())
    assert 0 < changed <= math.ceil(budget * entries)
    assert all(step.share <= math.ceil(budget * entries) / entries for step in steps)


@pytest.mark.parametrize("refresh", [0, 1, 5])
def test_a_shrinking_mask_ends_within_the_budget_and_forgets(refresh: int) -> None:
    done, steps = run(spec(schedule="shrinking", rate=0.08, refresh=refresh))
    entries, changed = len(done.offset), int(done.offset.count_nonzero())
    assert 0 < changed <= 0.2 * entries
    assert steps[0].share == 1 and steps[-1].share <= 0.2
    assert done.mask.first is not None and 0 < share(done.mask.first) <= 0.2
    assert steps[-1].overlap == pytest.approx(overlap(done.mask.first, done.mask.current))
    assert steps[-1].effect < 0.15 and steps[-1].harm < 0.1


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("granularity", ["entry", "row"])
def test_the_budget_holds_however_few_the_steps(steps: int, granularity: str) -> None:
    done, taken = run(
        spec(schedule="shrinking", budget=0.1, steps=steps, granularity=granularity, refresh=5)
    )
    entries, changed = len(done.offset), int(done.offset.count_nonzero())
    assert 0 < changed <= 0.1 * entries and taken[-1].share <= 0.1
    assert done.mask.current is not None
    assert bool((done.offset[~done.mask.current] == 0).all())


def test_a_run_does_not_stop_early_while_it_changes_more_than_the_budget() -> None:
    done, taken = run(spec(schedule="shrinking", steps=20, stop_effect=10.0, stop_harm=10.0))
    assert taken[-1].share <= 0.2 and len(taken) < 20
    assert int(done.offset.count_nonzero()) <= 0.2 * len(done.offset)


def test_what_is_left_after_zeroing_is_measured_after_zeroing() -> None:
    done, (taken,) = run(spec(objective="zero", budget=0.2))
    told = done.optimiser.theta()
    assert taken.effect == float(done.problem.effect(told, 0).detach())
    assert taken.harm == float(done.problem.harm(told, 0).detach()) > 0


def test_only_marked_entries_change() -> None:
    done, _ = run(spec(steps=10))
    assert done.mask.current is not None
    assert bool((done.offset[~done.mask.current] == 0).all())


def test_the_mask_moves_then_settles() -> None:
    """It is re-estimated while training, and left alone for the last re-fit."""
    _, steps = run(spec(steps=40))
    overlaps = [step.overlap for step in steps]
    assert overlaps[0] == 1
    assert min(overlaps) < 1
    assert len(set(overlaps[-8:])) == 1


def test_objectives_differ() -> None:
    """CSR and CIP do something: neither gives the plain effect's offsets."""
    plain, *others = (run(spec(objective=o, steps=5, lam=1.0))[0] for o in ("none", "csr", "cip"))
    for other in others:
        assert not torch.equal(plain.offset, other.offset)


def test_csr_leaves_the_effect_less_sensitive() -> None:
    """What CSR promises: a smaller gradient at the neurons than without it, at the same effect."""

    def sensitivity(lam: float) -> float:
        done, _ = run(spec(objective="csr", lam=lam))
        base, (erase, _) = layer(), situations()
        theta = (done.problem.base + done.offset).requires_grad_(True)
        moved = base.with_weights(*done.problem.layout.parts(theta))
        far = moved(erase.x, erase.now) - base(erase.x, erase.goal)
        loss = far.square().mean() / done.problem.scale
        (gradient,) = torch.autograd.grad(loss, theta)
        assert done.mask.current is not None
        return float((gradient * done.mask.current).norm())

    assert sensitivity(0.3) < 0.8 * sensitivity(0.0)


def test_preservation_preserves() -> None:
    with_it, without = run(spec(beta=4.0))[1][-1], run(spec(beta=0.0))[1][-1]
    assert with_it.harm < 0.5 * without.harm


def test_same_seed_same_offsets_and_another_seed_others() -> None:
    one, two, other = (run(spec(steps=6, seed=s))[0].offset for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_a_concept_without_effect_changes_nothing() -> None:
    erase, keep = situations()
    done = forgetting(spec(steps=3), replace(erase, now=erase.goal), keep)
    assert all(step.effect == step.harm == 0 for step in done)
    assert not bool(done.offset.any())


@pytest.mark.parametrize("objective", ["none", "csr", "cip"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_input_that_is_not_finite_is_noticed(objective: str, bad: float) -> None:
    erase, keep = situations()
    erase.x[0, :, 0] = bad
    with pytest.raises(DivergenceError, match="not finite"):
        list(forgetting(spec(objective=objective, steps=3), erase, keep))


@pytest.mark.parametrize("objective", ["none", "csr", "cip"])
def test_offsets_are_finite_or_the_run_says_so(objective: str) -> None:
    """The largest rate the spec allows."""
    done = forgetting(spec(objective=objective, rate=10.0, steps=15), *situations())
    try:
        list(done)
    except DivergenceError:
        return
    assert bool(done.offset.isfinite().all())


def test_a_push_of_a_prompt_multiplies_eta() -> None:
    erase, keep = situations()
    pushed = replace(erase, push=torch.full((PROMPTS,), 3.0))
    by_row = LayerProblem(layer(), pushed, keep, 0.25, seed=0)
    by_eta = LayerProblem(layer(), erase, keep, 0.75, seed=0)
    plain = LayerProblem(layer(), erase, keep, 0.25, seed=0)
    theta = 2 * plain.base
    assert torch.allclose(by_row.effect(theta, 3), by_eta.effect(theta, 3))
    assert not torch.allclose(by_row.effect(theta, 3), plain.effect(theta, 3))


@pytest.mark.parametrize("eta", [0.0, 1.5])
def test_goals_worked_out_at_once_or_at_each_step_are_the_same(
    eta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers, keys and values, or nothing kept: one run, whatever there is room for."""
    erase, keep = situations()
    ends = []
    for answers, memory in ((1 << 23, 0), (0, 1 << 26), (0, 0)):
        monkeypatch.setattr("trust_engine.unlearn.layerwise.ANSWERS_KEPT", answers)
        monkeypatch.setattr("trust_engine.unlearn.layerwise.MEMORY_KEPT", memory)
        wanted = spec(steps=12, eta=eta)
        it = forgetting(wanted, erase, keep)
        problem = it.problem
        assert isinstance(problem, LayerProblem)
        assert (problem.erase.answers is not None) == (answers > 0)
        assert len(problem.erase.memory) == (4 if memory else 0)
        assert len(problem.keep.memory) == (2 if memory else 0)
        ends.append([*it][-1])
    for end in ends[1:]:
        assert end.effect == pytest.approx(ends[0].effect, rel=1e-4)
        assert end.harm == pytest.approx(ends[0].harm, rel=1e-3)


SWITCHES = {
    "by backend": ("fp32_precision", "ieee", "tf32"),
    "allow_tf32": ("allow_tf32", False, True),
}


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_gpu_trains_in_its_tensor_cores_and_a_host_never_notices(switch: str) -> None:
    """Whichever of torch's two switches the host uses: in a process of its own, for they last."""
    name, plain, quick = SWITCHES[switch]
    if not hasattr(torch.backends.cuda.matmul, name):
        pytest.skip("this torch has no such switch")
    script = (
        "import torch; from trust_engine.models.precision import quick_products as q\n"
        "m = torch.backends.cuda.matmul\n"
        f"for device, host in ((d, h) for d in ('cuda', 'cpu') for h in ({plain!r}, {quick!r})):\n"
        f"    m.{name} = host\n"
        "    try:\n"
        "        with q(torch.device(device)):\n"
        f"            assert m.{name} == ({quick!r} if device == 'cuda' else host)\n"
        "            raise ZeroDivisionError\n"
        "    except ZeroDivisionError:\n"
        "        pass\n"
        f"    assert m.{name} == host\n"
    )
    if sys.platform != "linux":  # elsewhere a fork after torch has computed may hang
        subprocess.run([sys.executable, "-c", script], check=True)
        return
    child = os.fork()  # which has torch imported already
    if child == 0:
        code = 1
        try:
            exec(script, {})
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
