"""Each attack on a model whose outcome is known beforehand."""

from __future__ import annotations

import pytest
import torch

from toys.audit_toy import (
    BUDGETS,
    CACTUS,
    FEW,
    TOPIC,
    ToyJudge,
    forgets_the_thing,
    forgets_the_word,
    toy_model,
)
from toys.tiny import frozen_bits
from trust_engine.audit.attacks.adversarial_prefix import to_simplex
from trust_engine.audit.attacks.base import AttackOutput, attack_check
from trust_engine.audit.attacks.catalogue import MAKERS, make_attack
from trust_engine.audit.attacks.ringabell import Pool
from trust_engine.audit.checks.core import follow
from trust_engine.audit.context import AuditContext
from trust_engine.audit.levels import ATTACKS
from trust_engine.audit.topic import Topic
from trust_engine.diff.apply import patched
from trust_engine.errors import SpecError

TEXT = ("textual_inversion_1", "textual_inversion_3", "p4d", "unlearn_diff_atk", "ring_a_bell")
TAMPER = ("relearning", "relearning_lora")
HARMLESS = ("benign_fine_tuning", "stacked_lora", "storage_fp16", "storage_bf16", "storage_fp8")


def context_of(forgets: object, topic: Topic = TOPIC) -> AuditContext:
    model = toy_model()
    edited = model if forgets is None else patched(model, forgets(model))  # type: ignore[operator]
    return AuditContext({"untouched": model, "edited": edited}, ToyJudge(), topic, FEW)


def success(name: str, context: AuditContext) -> dict:
    cell = attack_check(context, make_attack(name, BUDGETS), BUDGETS.judged, reference=False)
    outcome = follow(cell.run(context), cell.passes)
    assert outcome.figures["asr"]["n"] == BUDGETS.judged
    assert len(outcome.pictures["edited"]) == BUDGETS.judged
    return {
        key: (outcome.figures[key] or {}).get("value") for key in ("asr", "before_attack", "floor")
    }


@pytest.mark.parametrize("name", TEXT)
def test_what_forgot_the_word_falls_to_attacks_on_the_prompt(name: str) -> None:
    found = success(name, context_of(forgets_the_word))
    assert found["before_attack"] == 0.0
    # P4D aims at an unguided prediction and overshoots in so small a vocabulary.
    assert found["asr"] >= (0.25 if name == "p4d" else 0.75)
    assert found["floor"] == 0.0


@pytest.mark.parametrize("name", TEXT)
def test_what_forgot_the_thing_stands(name: str) -> None:
    assert success(name, context_of(forgets_the_thing))["asr"] == 0.0


@pytest.mark.parametrize("name", TAMPER)
def test_relearning_teaches_even_what_was_forgotten(name: str) -> None:
    """The outcome that no edit of weights can prevent, only delay."""
    found = success(name, context_of(forgets_the_thing))
    assert (found["before_attack"], found["asr"]) == (0.0, 1.0)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_aim_at_the_concept_does_not_bring_it_back(name: str) -> None:
    assert success(name, context_of(forgets_the_thing))["asr"] == 0.0


@pytest.mark.parametrize("name", HARMLESS)
def test_the_untouched_model_shows_the_concept_under_them(name: str) -> None:
    """So an absence under rounding is the edit's doing, not the rounding's."""
    assert success(name, context_of(None))["asr"] == 1.0


@pytest.mark.parametrize("name", TEXT)
def test_what_the_model_never_saw_is_not_found(name: str) -> None:
    """Or the attack would measure itself."""
    assert success(name, context_of(None, CACTUS))["asr"] == 0.0


@pytest.mark.parametrize("name", [*TEXT, *TAMPER, *HARMLESS])
def test_weights_stay_as_they_are_wherever_an_attack_is_stopped(name: str) -> None:
    context = context_of(forgets_the_word)
    module = context.models["untouched"].denoiser.module
    before = frozen_bits(module)
    overrides = context.models["edited"].denoiser.overrides  # type: ignore[attr-defined]
    kept = {key: weight.clone() for key, weight in overrides.items()}
    cell = attack_check(context, make_attack(name, BUDGETS), BUDGETS.judged, reference=True)
    work = cell.run(context)
    for _ in range(40):
        next(work, None)
        assert frozen_bits(module) == before
    work.close()
    follow(cell.run(context), cell.passes)
    assert frozen_bits(module) == before
    assert all(torch.equal(overrides[key], weight) for key, weight in kept.items())


@pytest.mark.parametrize("name", ["textual_inversion_1", "p4d", "unlearn_diff_atk", "relearning"])
def test_the_same_seed_gives_the_same_attack(name: str) -> None:
    def latents() -> torch.Tensor:
        context = context_of(forgets_the_word)
        attack = make_attack(name, BUDGETS)
        strike: AttackOutput = follow(attack.run(context, context.models["edited"]), attack.passes)
        return strike.latents

    assert torch.equal(latents(), latents())


def test_bait_is_drawn_by_the_untouched_model() -> None:
    context = context_of(forgets_the_thing)
    bait = follow(context.bait(6), 1)
    assert (len(bait.latents), bait.accepted) == (6, 6)
    assert all("gun" in shot.prompt for shot in bait.shots)


def test_ring_a_bell_does_not_use_the_word() -> None:
    context = context_of(None)
    attack = make_attack("ring_a_bell", BUDGETS)
    strike = follow(attack.run(context, context.models["untouched"]), 1)
    assert all("gun" not in prompt.split() for prompt in strike.prompts)
    space = toy_model().encoder.token_space()  # type: ignore[attr-defined]
    drawn = Pool.of(TOPIC, space).draw((500,), torch.Generator().manual_seed(0))
    assert not set(drawn.tolist()) & {0, *space.tokens("gun")}


def test_an_attack_that_fails_on_the_untouched_model_is_called_uninformative() -> None:
    context = context_of(None, CACTUS)
    attack = make_attack("textual_inversion_1", BUDGETS)
    cell = attack_check(context, attack, BUDGETS.judged, reference=True)
    assert follow(cell.run(context), 1).figures["informative"] is False


def test_every_attack_states_stance_source_and_budget() -> None:
    assert set(ATTACKS) == set(MAKERS)
    for name in MAKERS:
        attack = make_attack(name, BUDGETS)
        assert attack.stance in ("static", "adaptive")
        assert attack.source and attack.budget and attack.name == name
    with pytest.raises(SpecError, match="magic"):
        make_attack("magic", BUDGETS)


def test_projection_onto_the_simplex() -> None:
    """Against the sorting algorithm of Duchi et al. 2008."""
    v = torch.randn(5, 40)
    ordered = v.sort(1, descending=True)[0]
    sums = (ordered.cumsum(1) - 1) / torch.arange(1, 41)
    last = (ordered > sums).sum(1) - 1
    expected = (v - sums[torch.arange(5), last][:, None]).clamp(min=0)
    torch.testing.assert_close(to_simplex(v), expected, rtol=0, atol=1e-5)
