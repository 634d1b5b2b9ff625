"""A denoiser under offsets that are not written."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from toys.tiny import frozen_bits, tiny_model
from trust_engine.diff import LowRankOffset, Offset, SparseOffset, WeightDiff, applied
from trust_engine.diff.overlaid import Overlaid
from trust_engine.models.contract import LentModel, projections

CONV, LINEAR = "input_blocks.1.0.in_layers.2.weight", "input_blocks.1.1.proj_in.weight"


def offsets(model: LentModel) -> Mapping[str, Offset]:
    """Move a convolution, a layer beside it, and queries twice."""
    query = next(key for key in projections(model.denoiser) if key.endswith("to_q.weight"))
    found: dict[str, Offset] = {}
    for key in (CONV, LINEAR, query):
        weight = model.denoiser.module.get_parameter(model.denoiser.parameter_name(key))
        up = 0.3 * torch.randn(weight.shape[0], 2, *weight.shape[2:])
        found[key] = LowRankOffset(up, 0.3 * torch.randn(2, weight.shape[1]))
    both = found[query]
    assert isinstance(both, LowRankOffset)
    some = SparseOffset(both.shape, torch.tensor([0, 5], dtype=torch.int32), torch.ones(2))
    found[query] = LowRankOffset(both.up, both.down, some)
    return found


def pass_of(model: LentModel, denoiser: object) -> torch.Tensor:
    """Predict once."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    cond = model.encoder.encode(["a gun", "a cat"])
    with torch.no_grad():
        made = denoiser(x, torch.tensor([300, 600]), cond)  # type: ignore[operator]
    assert isinstance(made, torch.Tensor)
    return made


def test_it_computes_what_the_applied_diff_does_to_the_bit() -> None:
    model = tiny_model()
    moved, before = offsets(model), frozen_bits(model.denoiser.module)
    with applied(model.denoiser, [(WeightDiff(dict(moved), {}), 1.0)]):
        wanted = pass_of(model, model.denoiser)
    plain = pass_of(model, model.denoiser)
    found = pass_of(model, Overlaid(model.denoiser, moved))
    assert torch.equal(found, wanted) and not torch.equal(found, plain)
    assert frozen_bits(model.denoiser.module) == before
    assert torch.equal(pass_of(model, model.denoiser), plain)


@pytest.mark.parametrize("key", [CONV, LINEAR])
def test_an_error_within_a_pass_leaves_every_weight_as_it_was(key: str) -> None:
    model = tiny_model()
    moved, module = offsets(model), model.denoiser.module
    before = {name: id(weight) for name, weight in module.named_parameters()}
    owner = module.get_submodule(model.denoiser.parameter_name(key).rpartition(".")[0])
    seen = []

    def fail(layer: nn.Module, *_: object) -> None:
        seen.append(layer.weight is not None and id(layer.weight) not in before.values())
        raise KeyboardInterrupt

    hook = owner.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        pass_of(model, Overlaid(model.denoiser, moved))
    hook.remove()
    assert seen == [True]  # the made weight stood there
    assert {name: id(weight) for name, weight in module.named_parameters()} == before
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


def test_only_one_layers_weight_is_made_at_a_time() -> None:
    model = tiny_model()
    module, most = model.denoiser.module, 0
    own = {id(weight) for weight in module.parameters()}

    def count(*_: object) -> None:
        nonlocal most
        most = max(most, sum(id(weight) not in own for weight in module.parameters()))

    hooks = [layer.register_forward_pre_hook(count) for layer in module.modules()]
    hooks += [layer.register_forward_hook(count) for layer in module.modules()]
    pass_of(model, Overlaid(model.denoiser, offsets(model)))
    for hook in hooks:
        hook.remove()
    assert most == 1
