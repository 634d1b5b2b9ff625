"""Weights that stand in for a model's own during a call: the patched model and the tampered one."""

from __future__ import annotations

import pytest
import torch

from toys.audit_toy import forgets_the_word, toy_model
from toys.tiny import frozen_bits
from trust_engine.diff import applied
from trust_engine.diff.apply import patched
from trust_engine.models.contract import Conditioning
from trust_engine.models.overrides import override, weights_of


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
