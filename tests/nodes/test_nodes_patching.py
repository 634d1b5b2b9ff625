"""Our patch under what hosts do to patches: made anew in flight, added in the weight's own type."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fakes.comfy import Host, Patcher, Vae, fake_model
from fakes.comfy_modules import calculate_weight, cast_with_patches
from fakes.comfy_pack import Part, frozen, unlearn

KEY = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
FULL = "diffusion_model." + KEY
TYPES = [torch.float32, torch.float16, torch.bfloat16]


def made(part: Part, shape: tuple[int, ...], key: str = KEY, scale: float = 0.05) -> Any:
    """Make a diff that changes a fifth of one weight's entries."""
    change = torch.where(torch.rand(shape) < 0.2, scale * torch.randn(shape), torch.zeros(shape))
    diff = part("trust_engine.diff")
    return diff.WeightDiff({key: diff.SparseOffset.of(change)}, {"concepts": "gun"})


def base(model: Patcher) -> torch.Tensor:
    """Return the weight that the diffs here change."""
    return model.model.diffusion_model.state_dict()[KEY]


def made_low(part: Part, shape: tuple[int, ...], extra: bool, key: str = KEY) -> Any:
    """Make a diff that changes one weight by a product of rank 2, and by some entries on top."""
    diff = part("trust_engine.diff")
    sparse = made(part, shape).offsets[KEY] if extra else None
    out, channels, *taps = shape
    up, down = 0.05 * torch.randn(out, 2, *taps), torch.randn(2, channels)
    return diff.WeightDiff({key: diff.LowRankOffset(up, down, sparse)}, {"concepts": "gun"})


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("strength", [1.0, -0.5])
@pytest.mark.parametrize("extra", [False, True])
def test_low_rank_survives_the_hosts_rebuild(
    part: Part, host: Host, dtype: torch.dtype, strength: float, extra: bool
) -> None:
    """Multiplied in float32 where the weight is made, and rounded once."""
    model = fake_model(host, dtype=dtype)
    diff = made_low(part, tuple(base(model).shape), extra)
    patches = part("nodes.patching").patched(model, diff, strength).patches[FULL]
    whole = base(model).float() + strength * diff.offsets[KEY].dense()
    cast = cast_with_patches(patches, base(model).clone(), FULL)
    assert cast.dtype == dtype
    torch.testing.assert_close(cast, whole.to(dtype))
    direct = calculate_weight(patches, base(model).float().clone(), FULL)
    assert torch.equal(direct.to(dtype), cast), "the classic way of loading draws the same"


@pytest.mark.parametrize("extra", [False, True])
def test_a_low_rank_patch_is_made_of_keys_and_tensors(
    part: Part, model: Patcher, extra: bool
) -> None:
    """Of the factors themselves: no dense tensor waits in memory."""
    diff = made_low(part, tuple(base(model).shape), extra)
    value = part("nodes.patching").patches_of(diff)[FULL]
    shapes = [tuple(weight.shape) for weight in value.weights]
    assert shapes[:2] == [(8, 2), (2, 6)] and len(shapes) == (4 if extra else 2)
    again = type(value)(value.loaded_keys, [torch.empty_like(weight) for weight in value.weights])
    assert part("nodes.patching").is_ours((1.0, again, 1.0, None, None))


def test_a_convolution_of_low_rank(part: Part) -> None:
    diff = made_low(part, (6, 5, 3, 3), True, KEY)
    value = part("nodes.patching").patches_of(diff)[FULL]
    weight = torch.randn(6, 5, 3, 3)
    expected = weight + 0.5 * diff.offsets[KEY].dense()
    made = value.calculate_weight(weight, FULL, 0.5, 1.0, None, lambda change: change)
    assert made is weight
    torch.testing.assert_close(made, expected)


def test_what_the_host_draws_with_is_named_by_its_diff(part: Part, model: Patcher) -> None:
    """Weights are read with the diff; and the diff is told as what it is, not entry by entry."""
    diff = made_low(part, tuple(base(model).shape), True)
    after = part("nodes.patching").patched(model, diff)
    change = diff.offsets[KEY].dense()
    read = part("nodes.weights").Weights(after).read(KEY)
    torch.testing.assert_close(read, base(model) + change)
    plain = part("nodes.weights").Weights(after, ours=False).read(KEY)
    assert torch.equal(plain, base(model))
    ((found, strength),) = part("nodes.changes").diffs_between(model, after)
    assert (found, strength) == (diff, 1.0)
    between = part("nodes.changes").between_models(model, after)
    torch.testing.assert_close(between.offsets[KEY].dense(), change)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_survives_the_hosts_rebuild(
    part: Part, host: Host, dtype: torch.dtype, strength: float
) -> None:
    """The sum is rounded once: to the nearest number of the weight's type."""
    model = fake_model(host, dtype=dtype)
    diff = made(part, tuple(base(model).shape))
    patches = part("nodes.patching").patched(model, diff, strength).patches[FULL]
    whole = base(model).double() + strength * diff.offsets[KEY].dense().double()
    cast = cast_with_patches(patches, base(model).clone(), FULL)
    assert cast.dtype == dtype and torch.equal(cast, whole.to(dtype))
    direct = calculate_weight(patches, base(model).float().clone(), FULL)
    assert torch.equal(direct.to(dtype), cast), "the classic way of loading draws the same"


def test_a_patch_is_made_of_keys_and_tensors(part: Part, model: Patcher) -> None:
    value = part("nodes.patching").patches_of(made(part, tuple(base(model).shape)))[FULL]
    assert all(isinstance(weight, torch.Tensor) for weight in value.weights)
    again = type(value)(value.loaded_keys, [torch.empty_like(weight) for weight in value.weights])
    assert part("nodes.patching").is_ours((1.0, again, 1.0, None, None))


def test_adds_to_a_part_of_a_weight(part: Part, model: Patcher) -> None:
    """The host may hand a strided view of a larger weight, and a function for the change."""
    whole = torch.randn(6, 10)
    before = whole.clone()
    change = made(part, (6, 4)).offsets[KEY]
    value = part("nodes.patching").patches_of(
        part("trust_engine.diff").WeightDiff({KEY: change}, {})
    )[FULL]  # fmt: skip
    value.calculate_weight(whole[:, 3:7], FULL, 1.0, 1.0, None, lambda change: -change)
    assert torch.equal(whole[:, 3:7], before[:, 3:7] - change.dense())
    assert torch.equal(whole[:, :3], before[:, :3]) and torch.equal(whole[:, 7:], before[:, 7:])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_run_under_dynamic_vram(part: Part, host: Host, dtype: torch.dtype) -> None:
    """Unlearning, its own pictures with the diff, and applying: all cast by the host's rebuild."""
    host.dynamic = True
    model = fake_model(host, dtype=dtype)
    before = frozen(model)
    after, diff, _, report = unlearn(part, model, vae=Vae(), pictures=2)
    assert diff.changed and "gun: changed in " in report
    with torch.inference_mode():
        import comfy.model_management as mm

        again = part("nodes.patching").patched(after, diff, -1.0)
        mm.load_models_gpu([again])  # a diff and its opposite in one list
        mm.unload_all_models()
    assert frozen(model) == before


def test_another_shape_is_refused_before_it_is_patched(part: Part, model: Patcher) -> None:
    errors = part("trust_engine.errors")
    with pytest.raises(errors.DiffError, match=r"to_k.*the diff has \(3, 6\), the model \(8, 6\)"):
        part("nodes.patching").patched(model, made(part, (3, 6)))
    assert not model.patches
