"""Offsets of low rank: what they add up to, in every place where sparse ones are taken."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine.diff.test_diff_apply import bits
from torch import Tensor

from toys.small_unet import (
    KEY,
    OTHERS,
    SHAPES,
    low_rank,
    numbers,
    scrubbed_diff,
    small_checkpoint,
    small_denoiser,
    small_diff,
    small_weights,
)
from trust_engine.diff import (
    LowRankOffset,
    Offset,
    SparseOffset,
    WeightDiff,
    applied,
    combine,
    energy,
    load_diff,
    overlap,
    overlap_with_rest,
    payload_sha256,
    refuse_empty,
    save_diff,
    scaled,
    subtracted,
    thinned,
    touched,
)
from trust_engine.diff.apply import add
from trust_engine.diff.arithmetic import How
from trust_engine.diff.bake import write_checkpoint
from trust_engine.diff.base_model import open_base
from trust_engine.errors import DiffError
from trust_engine.models.load import load_model
from trust_engine.models.unet_keys import LDM_PREFIX

CONVOLUTION = "out.2.weight"
SHAPES_HERE = [(6, 8), (4, 8, 3, 3), (4, 8, 1, 1)]


def with_entries(offset: LowRankOffset, count: int = 5) -> LowRankOffset:
    """Move some entries on top."""
    chance = torch.Generator().manual_seed(9)
    indices = torch.randperm(offset.numel, generator=chance)[:count].sort().values.int()
    sparse = SparseOffset(offset.shape, indices, torch.randn(count, generator=chance))
    return replace(offset, sparse=sparse)


def by_hand(offset: LowRankOffset) -> Tensor:
    """Add an offset up direction by direction, in float64."""
    total = torch.zeros(offset.shape, dtype=torch.float64)
    for k in range(offset.rank):
        taps = [1] * (len(offset.shape) - 2)
        up, down = offset.up[:, k].double().unsqueeze(1), offset.down[k].double()
        total += up * down.view(1, -1, *taps)
    if offset.sparse is not None:
        total.view(-1)[offset.sparse.indices.long()] += offset.sparse.values.double()
    return total


def whole(diff: WeightDiff) -> dict[str, Tensor]:
    """Write a diff out."""
    return {key: offset.dense().double() for key, offset in diff.offsets.items()}


def entries_of(diff: WeightDiff) -> WeightDiff:
    """Write a diff entry by entry, as diffs were before there was low rank."""
    return replace(diff, offsets={key: o.entries() for key, o in diff.offsets.items()})


def assert_same(one: WeightDiff, other: WeightDiff) -> None:
    """Compare what two diffs add."""
    assert one.shapes == other.shapes
    for key, expected in whole(other).items():
        torch.testing.assert_close(whole(one)[key], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES_HERE)
@pytest.mark.parametrize("extra", [False, True])
def test_an_offset_is_its_factors_product_and_entries(shape: tuple[int, ...], extra: bool) -> None:
    offset = low_rank(shape, 3)
    offset = with_entries(offset) if extra else offset
    assert (offset.shape, offset.numel, offset.rank) == (shape, math.prod(shape), 3)
    assert offset.changed == offset.numel and not offset.is_zero
    dense = offset.dense()
    torch.testing.assert_close(dense.double(), by_hand(offset), rtol=1e-5, atol=1e-7)
    assert torch.equal(offset.entries().dense(), dense)
    blocks = list(offset.blocks(10))
    assert all(len(values) <= 10 for _, values in blocks)
    assert torch.equal(torch.cat([values for _, values in blocks]), dense.flatten())
    assert torch.equal(offset.times(-2).dense(), -2 * dense)
    nothing = offset.times(0)
    assert nothing.is_zero and nothing.factors is None and nothing.shape == shape


def test_directions_that_move_nothing_are_left_out() -> None:
    offset = low_rank((6, 8), 4)
    offset.up[:, 1], offset.down[3] = 0, 0
    tidy = offset.tidy()
    assert isinstance(tidy, LowRankOffset)
    assert tidy.rank == 2 and torch.equal(tidy.dense(), offset.dense())
    tiny = LowRankOffset(offset.up * torch.tensor([1, 0, 1e-12, 0]), offset.down)
    assert numbers(tiny.compact()) == numbers(replace(offset, up=tiny.up).compact())
    assert tiny.compact().factors is not None
    assert len(tiny.compact().factors[1]) == 1  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
def test_applied_and_restored_to_the_bit(dtype: torch.dtype, turned: bool) -> None:
    """Twice in a row, another diff between, and an error within: the very same bits come back."""
    lent, diff = small_denoiser(dtype=dtype), scrubbed_diff()
    if turned:
        for weight in lent.module.parameters():
            weight.data = weight.data.transpose(0, 1).contiguous().transpose(0, 1)
    before, start = bits(lent), small_weights(dtype=dtype)
    with applied(lent, [(diff, 0.5)]) as lost:
        now = dict(lent.module.named_parameters())
        for key, offset in diff.offsets.items():
            expected = (start[key].float() + 0.5 * offset.dense()).to(dtype)
            assert torch.equal(now[key], expected), key
        assert lost.entries == diff.changed
    assert bits(lent) == before
    with (
        pytest.raises(RuntimeError, match="stop"),
        applied(lent, [(diff, 1.0), (small_diff(1), -1.0), (scrubbed_diff(1), 2.0)]),
    ):
        assert bits(lent) != before
        raise RuntimeError("stop")
    assert bits(lent) == before


def test_too_strong_for_the_number_type_is_taken_back() -> None:
    lent, diff = small_denoiser(dtype=torch.float16), scrubbed_diff()
    before = bits(lent)
    offset = low_rank(OTHERS[CONVOLUTION], 2)
    huge = replace(diff, offsets={**diff.offsets, CONVOLUTION: offset.times(1e7)})
    with pytest.raises(DiffError, match="choose a smaller one"), applied(lent, [(huge, 1.0)]):
        pytest.fail("it was applied")
    assert bits(lent) == before


def test_float8_is_changed_and_restored() -> None:
    lent, diff = small_denoiser(dtype=torch.float8_e4m3fn), scrubbed_diff()
    before = bits(lent)
    with applied(lent, [(diff, 1.0)]):
        assert bits(lent) != before
    assert bits(lent) == before


def test_what_is_overwritten_is_kept_without_an_index_for_each_entry() -> None:
    """A whole UNet's would take twice what its weights do."""
    from trust_engine.diff import Rounding

    weight, offset = torch.randn(300, 300), low_rank((300, 300), 2)
    kept = [(where, old.clone()) for where, old in add(weight, offset, 1.0, Rounding(), "a.weight")]
    assert len(kept) > 1 and all(isinstance(where, slice) for where, _ in kept)
    assert sum(len(old) for _, old in kept) == weight.numel()


def test_a_checkpoint_gets_what_applying_gives(tmp_path: Path) -> None:
    diff, lent = scrubbed_diff(), small_denoiser(dtype=torch.float16)
    source = small_checkpoint(tmp_path / "base", dtype=torch.float16)
    with open_base(source) as base:
        assert base.check([(diff, 1.0)], ["diff"]) == []
        write_checkpoint(base, [(diff, 1.0)], tmp_path / "out")
    with applied(lent, [(diff, 1.0)]), open_base(tmp_path / "out") as made:
        for key, weight in lent.module.named_parameters():
            assert torch.equal(made.read(key), weight), key
        assert made.stock[CONVOLUTION].name == LDM_PREFIX + CONVOLUTION
        with pytest.raises(DiffError, match=r"is in .* already"):
            made.check([(diff, 1.0)], ["diff"])


def test_sums_stack_factors_and_stay_of_low_rank() -> None:
    a, b = scrubbed_diff(), scrubbed_diff(1)
    merged = combine([(a, 1.0), (b, -0.5), (small_diff(2), 2.0)])
    assert_same(merged, combine([(entries_of(a), 1.0), (entries_of(b), -0.5), (small_diff(2), 2)]))
    query = merged.offsets[KEY]
    assert query.factors is not None and len(query.factors[1]) == 6
    assert query.sparse is not None and query.sparse.changed == small_diff(2).offsets[KEY].changed
    saved = replace(merged, provenance={})
    assert payload_sha256(saved) != payload_sha256(replace(a, provenance={}))


def test_a_diff_and_its_reverse_leave_nothing() -> None:
    diff = scrubbed_diff()
    for nothing in (subtracted(diff, diff), scaled(diff, 0.0)):
        assert nothing.changed == 0
        with pytest.raises(DiffError, match="changes nothing"):
            refuse_empty(nothing)
    twice = combine([(diff, 1.0), (diff, 1.0)])
    assert_same(twice, scaled(diff, 2.0))
    assert twice.directions == diff.directions


def test_factors_that_would_take_more_than_the_weight_become_entries() -> None:
    """Ten of rank 4 in a weight 64 x 64 are of rank 40; 40 x 128 numbers are more than 64 x 64."""
    parts = [(WeightDiff({KEY: low_rank(SHAPES[KEY], 4, seed)}), 1.0) for seed in range(10)]
    assert combine(parts[:7]).offsets[KEY].factors is not None
    merged = combine(parts)
    assert merged.offsets[KEY].factors is None
    assert_same(merged, combine([(entries_of(diff), s) for diff, s in parts]))


@pytest.mark.parametrize("how", ["mean", "strongest"])
def test_other_ways_to_merge(how: How) -> None:
    parts = [(scrubbed_diff(), 1.0), (scrubbed_diff(1), -2.0), (small_diff(2), 0.5)]
    whole_parts = [(entries_of(diff), strength) for diff, strength in parts]
    assert_same(combine(parts, how), combine(whole_parts, how))
    # What only one part moves, and a mean where all are of low rank alone, need no entries.
    merged = combine(parts[1:], how)
    assert merged.offsets[CONVOLUTION].factors is not None
    pair = combine(parts[:2], how).offsets[CONVOLUTION]
    assert (pair.factors is not None) == (how == "mean")


def test_figures_are_those_of_the_entries() -> None:
    a, b = scrubbed_diff(), scrubbed_diff(1)
    plain, other = entries_of(a), entries_of(b)
    assert energy(a) == pytest.approx(energy(plain), rel=1e-5)
    assert (a.changed, a.share) == (plain.changed, plain.share)
    assert a.directions == 3 + 2 + 5 and small_diff().directions == 0
    for mine, theirs in ((b, other), (small_diff(1), small_diff(1))):
        assert overlap(a, mine).as_dict() == overlap(plain, theirs).as_dict()
        assert touched([(a, 1.0), (mine, 1.0)]) == touched([(plain, 1.0), (theirs, 1.0)])
    third = small_diff(2)
    assert overlap_with_rest([(a, 1.0), (b, 1.0), (third, 0.5)]) == overlap_with_rest(
        [(plain, 1.0), (other, 1.0), (third, 0.5)]
    )
    assert touched([(a, 0.0)]) == 0


def test_thinning_keeps_the_largest_entries_of_the_product() -> None:
    diff = scrubbed_diff()
    thin = thinned(diff, 0.1)
    assert thin.directions == 0
    assert_same(thin, thinned(entries_of(diff), 0.1))
    assert thin.offsets[CONVOLUTION].changed == math.ceil(0.1 * math.prod(OTHERS[CONVOLUTION]))


def test_what_is_loaded_does_what_was_saved(tmp_path: Path) -> None:
    """On the demo model, with a change in every layer of which scrubbing makes one."""
    model = load_model("demo")
    offsets: dict[str, Offset] = {}
    for name, weight in model.denoiser.module.named_parameters():
        key = model.denoiser.checkpoint_key(name)
        if weight.ndim in (2, 4) and "to_out" in key:
            offsets[key] = low_rank(tuple(weight.shape), 2).compact()
    save_diff(WeightDiff(offsets), tmp_path / "a")
    again = load_diff(tmp_path / "a")
    before = {n: p.clone() for n, p in model.denoiser.module.named_parameters()}
    with applied(model.denoiser, [(again, 1.0)]):
        moved = {
            name: p.detach() - before[name]
            for name, p in model.denoiser.module.named_parameters()
            if not torch.equal(p, before[name])
        }
    assert len(moved) == len(offsets)
    for name, change in moved.items():
        expected = offsets[model.denoiser.checkpoint_key(name)].dense()
        torch.testing.assert_close(change, expected, rtol=0, atol=1e-6)
    for name, p in model.denoiser.module.named_parameters():
        assert torch.equal(p, before[name])


def test_a_single_direction_added_to_itself_stays_one() -> None:
    once = WeightDiff({KEY: low_rank(SHAPES[KEY], 1)})
    twice = combine([(once, 1.0), (once, 0.5)])
    assert twice.directions == 1
    torch.testing.assert_close(twice.offsets[KEY].dense(), 1.5 * once.offsets[KEY].dense())
