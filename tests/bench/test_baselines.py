"""The rivals on a tiny UNet: what each may touch, what its equation says, its cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.baselines import (
    ablation,
    closed_form,
    combination,
    esd,
    hardened,
    leco,
    salun,
    zeroing,
)
from bench.baselines.catalogue import METHODS
from bench.baselines.common import Meter, Task, Weights, denoise_to, keys_and_values
from toys.task import task_of
from toys.tiny import frozen_bits
from trust_engine.errors import SpecError
from trust_engine.models.contract import Conditioning
from trust_engine.models.load import LoadedModel
from trust_engine.models.overrides import weights_of
from trust_engine.models.sampler import SamplerSettings
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.run import Unlearning

SHORT: dict[str, Any] = {
    "esd-x": esd.Settings(steps=3, rate=3e-4, batch=2, sampler_steps=3),
    "esd-u": esd.Settings(steps=3, rate=3e-4, batch=2, sampler_steps=3),
    "uce": closed_form.Settings(),
    "rece": closed_form.Settings(rounds=2),
    "ca": ablation.Settings(steps=3, rate=3e-4, batch=2, images=2),
    "salun": salun.Settings(steps=3, rate=2e-4, batch=2, images=2),
    "zeroing": zeroing.Settings(share=0.05, images=2, sampler_steps=3),
    "cogfd": combination.Settings(steps=3, rate=2e-4, batch=2),
    "leco": leco.Settings(steps=3, rate=2e-3, batch=2, sampler_steps=3),
    "trust": {"steps": 3, "trajectory_steps": 2, "passes": 48},
    "trust-robust": {"steps": 3, "passes": 10},
    "trust-scrub": {"robust": True, "passes": 30, "steps": 3, "trajectory_steps": 2},
}


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Let robust mode see few pictures; its own tests see to what it makes of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardened, "BATCH", 4)
        patch.setattr(hardened, "DRAWING_STEPS", 3)
        patch.setattr(hardened, "MEASURED", 3)
        yield


def robust() -> UnlearnSpec:
    """Return what the short run of robust mode is asked for."""
    task = task_of()
    return UnlearnSpec((task.concept,), seed=task.seed, **SHORT["trust-scrub"])


@cache
def ran(name: str) -> tuple[Task, Weights, bool]:
    """Run a method once, for all tests that look at it; last: whether it left the model alone."""
    task = task_of()
    before = frozen_bits(task.model.denoiser.module)
    weights = METHODS[name].run(task, SHORT[name])
    return task, weights, frozen_bits(task.model.denoiser.module) == before


def loud(task: Task) -> Task:
    """Let the text matter more than it does in a random UNet."""
    for name, module in task.model.denoiser.module.named_modules():
        if name.endswith(".attn2.to_out.0"):
            module.weight.mul_(6)
    return task


def changes(task: Task, weights: Weights) -> Weights:
    before = weights_of(task.model.denoiser)
    return {n: w - before[n] for n, w in weights.items() if not torch.equal(w, before[n])}


@pytest.mark.parametrize("name", METHODS)
def test_leaves_the_model_alone_and_repeats_itself(name: str) -> None:
    task, first, untouched = ran(name)
    assert untouched
    again = METHODS[name].run(task_of(), SHORT[name])
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    moved = changes(task, first)
    assert moved and all(bool(change.isfinite().all()) for change in moved.values())
    victim = task.model.with_weights(first)
    x, t = torch.randn(1, 4, 4, 4), torch.tensor([500])
    cond = task.encode(["a gun"])
    with torch.no_grad():
        assert not torch.equal(victim.denoiser(x, t, cond), task.model.denoiser(x, t, cond))


@pytest.mark.parametrize("concept", [
    ConceptSpec(("baby",), "combination", companion="beer"),
    ConceptSpec(("sketch",), "style"),
])  # fmt: skip
@pytest.mark.parametrize("name", METHODS)
def test_takes_every_kind_of_concept(name: str, concept: ConceptSpec) -> None:
    task = task_of(concept)
    if concept.kind not in METHODS[name].kinds and name == "trust-scrub":
        with pytest.raises(SpecError, match="robust cannot take"):
            METHODS[name].run(task, SHORT[name])
        return
    assert changes(task, METHODS[name].run(task, SHORT[name]))


def test_each_touches_only_what_its_paper_trains() -> None:
    moved = {name: changes(*ran(name)[:2]) for name in METHODS}
    for name in ("esd-x", "cogfd"):
        assert all(".attn2." in key for key in moved[name])
    assert not any(".attn2." in key for key in moved["esd-u"]) and len(moved["esd-u"]) > 50
    for name in ("uce", "rece", "ca"):
        assert all(keys_and_values(key) for key in moved[name])
    assert all(key.endswith(".ff.net.2.weight") for key in moved["zeroing"])
    assert all(".attn" in key for key in moved["leco"])
    assert all(".attn2." in key for key in moved["trust"])
    scrubbed = moved["trust-scrub"]  # and then trained: both leave their mark
    assert not any(part in key for key in scrubbed for part in ("time_emb", "conv_in."))
    assert any(".attn2.to_v." in key for key in scrubbed)
    assert any(".attn2." not in key for key in scrubbed)
    entries = sum(w.numel() for w in weights_of(task_of().model.denoiser).values())
    marked = sum(int(change.count_nonzero()) for change in moved["salun"].values())
    assert 0.3 * entries < marked <= 0.5 * entries + 1
    for change in moved["leco"].values():
        assert torch.linalg.matrix_rank(change) <= SHORT["leco"].rank


@pytest.mark.parametrize("variant", ["x", "u"])
def test_esd_moves_the_prediction_away_from_the_concept(variant: Any) -> None:
    task, settings = loud(task_of()), esd.Settings(steps=30, batch=4, sampler_steps=2, rate=1e-3)
    told, empty = task.encode(task.prompts.targets), task.encode([""] * len(task.prompts.targets))
    sampler = SamplerSettings(2, 3.0)
    x, t = denoise_to(task.model, told, empty, torch.randn(len(told), 4, 4, 4), 1, sampler)
    goal = esd.guided_away(task.model, x, t, told, empty, 1.0)
    weights = esd.erase(loud(task_of()), variant, settings)
    assert gap(task.model.with_weights(weights), x, t, told, goal) < 0.6 * gap(
        task.model, x, t, told, goal
    )


def test_negative_guidance_is_esds() -> None:
    task = task_of()
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([300, 700])
    c, e = task.encode(["a gun"] * 2), task.encode([""] * 2)
    with torch.no_grad():
        told, free = task.model.denoiser(x, t, c), task.model.denoiser(x, t, e)
    found = esd.guided_away(task.model, x, t, c, e, 0.7)
    torch.testing.assert_close(found, 1.7 * free - 0.7 * told)


def test_ca_answers_the_concept_as_the_student_answers_its_anchor() -> None:
    task = loud(task_of())
    n = len(task.prompts.targets)
    told, anchor = task.encode(task.prompts.targets), task.encode(task.prompts.anchors)
    x, t = torch.randn(n, 4, 4, 4), torch.full((n,), 995)
    settings = ablation.Settings(steps=20, rate=2e-3, batch=4, images=2, regular=0.0)
    student = task.model.with_weights(ablation.erase(loud(task_of()), settings))
    before, after = (gap(m, x, t, told, m.denoiser(x, t, anchor)) for m in (task.model, student))
    assert after < 0.8 * before


def test_cogfd_leaves_the_combination_and_stays_with_its_members() -> None:
    concept = ConceptSpec(("baby",), "combination", companion="beer")
    task = loud(task_of(concept))
    settings = combination.Settings(steps=40, rate=2e-3, batch=4, push=1.0)
    student = task.model.with_weights(combination.erase(loud(task_of(concept)), settings))
    x, t = torch.randn(16, 4, 4, 4), torch.full((16,), 995)
    both, members = (
        task.encode((list(p) * 16)[:16]) for p in (task.prompts.targets, task.prompts.preserve)
    )
    left, stayed = (gap(student, x, t, c, task.model.denoiser(x, t, c)) for c in (both, members))
    assert left > 2 * stayed


@torch.no_grad()
def gap(model: LoadedModel, x: Tensor, t: Tensor, cond: Conditioning, goal: Tensor) -> float:
    """Measure the distance of a prediction to its goal."""
    return float((model.denoiser(x, t, cond) - goal).square().mean())


def test_uce_solves_its_equation() -> None:
    """At the minimum the objective's gradient is zero; here it is taken by autograd."""
    chance = torch.Generator().manual_seed(0)
    w0 = torch.randn(6, 5, generator=chance)
    rows = closed_form.Rows(*(torch.randn(n, 5, generator=chance) for n in (3, 3, 4)))
    settings = closed_form.Settings(erase=1.3, keep=0.4, ridge=0.2)
    now = w0 + 0.1 * torch.randn(6, 5, generator=chance)
    w = closed_form.solve(now, w0, rows, settings).requires_grad_()
    objective = (
        1.3 * (rows.now @ w.T - rows.goal @ w0.T).square().sum()
        + 0.4 * (rows.kept @ (w - w0).T).square().sum()
        + 0.2 * (w - now).square().sum()
    )
    (gradient,) = torch.autograd.grad(objective, [w])
    torch.testing.assert_close(gradient, torch.zeros_like(w), rtol=0, atol=1e-4)


def test_uce_answers_the_concept_as_its_anchor_and_keeps_the_rest() -> None:
    task = task_of()
    rows, before = closed_form.text_rows(task), weights_of(task.model.denoiser)
    edited = closed_form.uce(task, closed_form.Settings(keep=1.0, ridge=1e-3))
    for name, w in edited.items():
        goal = rows.goal @ before[name].T
        now, was = rows.now @ w.T - goal, rows.now @ before[name].T - goal
        assert now.square().sum() < 0.5 * was.square().sum()
        kept = (rows.kept @ (w - before[name]).T).square().sum()
        assert kept < 0.2 * (rows.kept @ before[name].T).square().sum()


def test_rece_finds_the_embedding_that_brings_the_concept_back() -> None:
    """Where the edit can be inverted, the derived embedding answers as the concept did."""
    chance = torch.Generator().manual_seed(1)
    start, edited = (torch.randn(5, 5, generator=chance) for _ in range(2))
    concept = torch.randn(3, 5, generator=chance)
    found = closed_form.derive([edited], [start], concept, 1e-9)
    torch.testing.assert_close(found @ edited.T, concept @ start.T, rtol=1e-3, atol=1e-3)


def test_rece_closes_the_embedding_that_revives_uce() -> None:
    task, settings = task_of(), closed_form.Settings(rounds=3)
    rows, before = closed_form.text_rows(task), weights_of(task.model.denoiser)
    uce, rece = closed_form.uce(task, settings), closed_form.rece(task, settings)
    start = [before[name] for name in uce]
    c = closed_form.derive(list(uce.values()), start, rows.now, settings.nearness)

    def revived(edited: Weights) -> float:
        gap = sum(
            float((c @ w.T - rows.now @ before[name].T).square().sum())
            for name, w in edited.items()
        )
        whole = sum(float((rows.now @ before[name].T).square().sum()) for name in edited)
        return 1 - gap / whole

    assert revived(rece) < revived(uce) - 0.05


def test_salun_marks_the_largest_gradients() -> None:
    """Over all weights together, whatever their sign."""
    gradients = {"a": torch.tensor([[0.1, -0.9], [0.5, 0.4]]), "b": torch.tensor([-0.8, 0.05])}
    masks = salun.salient(gradients, 0.5)
    assert masks["a"].tolist() == [[0, 1], [1, 0]] and masks["b"].tolist() == [1, 0]
    assert sum(int(mask.sum()) for mask in salun.salient(gradients, 1.0).values()) == 6


def test_zeroing_spares_what_the_anchor_needs_as_much() -> None:
    task = task_of()
    same = replace(task.prompts, targets=task.prompts.anchors)
    task.__dict__["prompts"] = same  # no difference between concept and anchor
    assert not changes(task, zeroing.erase(task, SHORT["zeroing"]))
    task = task_of()
    before = weights_of(task.model.denoiser)
    for name, w in zeroing.erase(task, SHORT["zeroing"]).items():
        gone = w != before[name]
        assert not w[gone].any()
        # of two early steps, each may mark a twentieth of a row
        assert gone.sum(1).max() <= 2 * round(0.05 * w.shape[1])


def test_passes_are_counted_backward_as_two() -> None:
    meter = Meter()
    combination.erase(task_of(meter=meter), combination.Settings(steps=2, rate=2e-4, batch=3))
    assert meter.passes == 2 * 3 * (2 + 2 * 3)
    task, run = ran("trust-scrub")[0], Unlearning(task_of().model.lend(), robust())
    for _ in run:
        pass
    assert run.knowledge is not None and run.backward > 0
    assert task.meter.passes == run.knowledge.passes + run.passes + 2 * run.backward
    meter = Meter()
    closed_form.uce(task_of(meter=meter), closed_form.Settings())
    assert meter.passes == 0


def test_every_grid_is_small_and_holds_only_real_settings() -> None:
    for method in METHODS.values():
        assert 1 <= len(method.grid) <= 6
        for tried in method.grid:
            method.with_changes(tried) if tried else None


def test_a_kind_of_concept_has_settings_of_the_same_grid() -> None:
    for method in METHODS.values():
        assert set(method.suited) <= set(method.kinds)
        for kind in method.suited:
            tried = [method.with_changes(changes).settings for changes in method.grid]
            assert method.settings_for(kind) in tried and method.settings in tried
        assert method.settings_for("no such kind") == method.settings
