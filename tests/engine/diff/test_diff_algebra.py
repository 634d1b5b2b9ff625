"""Diffs add, subtract, scale and merge like the vectors they are, and say how they get along."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toys.small_unet import KEY, SHAPES, small_denoiser, small_diff, small_weights
from trust_engine.diff import (
    SparseOffset,
    WeightDiff,
    added,
    applied,
    between,
    combine,
    energy,
    overlap,
    overlap_with_rest,
    payload_sha256,
    scaled,
    subtracted,
    thinned,
    touched,
)
from trust_engine.errors import DiffError, SpecError
from trust_engine.models.contract import projections
from trust_engine.spec import ConceptSpec, UnlearnSpec

Vectors = st.lists(st.integers(-64, 64).map(lambda n: n / 16), min_size=8, max_size=8)


def one(values: list[float], **provenance: str) -> WeightDiff:
    """Make a diff of a single weight of shape (2, 4)."""
    return WeightDiff({KEY: SparseOffset.of(torch.tensor(values).view(2, 4))}, provenance)


def dense(diff: WeightDiff) -> torch.Tensor:
    """Write the single weight's offset out."""
    return diff.offsets[KEY].dense().flatten()


@settings(max_examples=60, deadline=None)
@given(Vectors, Vectors, st.floats(-2, 2, width=16))
def test_the_rules_of_vectors(x: list[float], y: list[float], s: float) -> None:
    a, b = one(x), one(y)
    assert torch.equal(dense(added(a, b)), torch.tensor(x) + torch.tensor(y))
    assert torch.equal(dense(added(a, b)), dense(added(b, a)))
    assert torch.equal(dense(subtracted(added(a, b), b)), dense(a))
    assert subtracted(a, a).changed == 0
    torch.testing.assert_close(dense(scaled(a, s)), s * torch.tensor(x))
    torch.testing.assert_close(
        dense(combine([(a, s), (b, -0.5)])), s * torch.tensor(x) - 0.5 * torch.tensor(y)
    )
    mixed = combine([(a, 1.0), (b, 1.0)], "strongest")
    assert (dense(mixed).abs() == torch.maximum(dense(a).abs(), dense(b).abs())).all()


def test_mean_divides_by_those_who_touch_an_entry() -> None:
    mixed = combine([(one([2, 4, 0, 0, 0, 0, 0, 0]), 1.0), (one([0, 2, 6] + [0] * 5), 1.0)], "mean")
    assert dense(mixed).tolist()[:3] == [2.0, 3.0, 6.0]


def test_of_two_that_move_an_entry_alike_the_one_that_is_named_first_is_strongest() -> None:
    a, b = one([1, 2] + [0] * 6), one([-1, 3] + [0] * 6)
    assert dense(combine([(a, 1.0), (b, 1.0)], "strongest")).tolist()[:2] == [1, 3]
    assert dense(combine([(b, 1.0), (a, 1.0)], "strongest")).tolist()[:2] == [-1, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_base_plus_difference_is_the_tuned_model(dtype: torch.dtype) -> None:
    lent, tuned = small_denoiser(dtype=dtype), small_weights(1, dtype)
    base = {key: weight.clone() for key, weight in projections(lent).items()}
    diff = between(base, {key: tuned[key] for key in SHAPES})
    with applied(lent, [(diff, 1.0)]) as lost:
        for key, weight in projections(lent).items():
            if dtype == torch.float32:  # the difference itself is rounded once
                torch.testing.assert_close(weight, tuned[key], rtol=2e-7, atol=2e-8)
            else:
                assert torch.equal(weight, tuned[key]), key
    assert lost.lost < 1e-6


@pytest.mark.parametrize("strength", [-2.0, -1.0, 0.5, 2.0])
def test_one_composed_file_does_what_the_chain_does(strength: float) -> None:
    lent, a, b = small_denoiser(), small_diff(), small_diff(1)
    with applied(lent, [(a, 1.0), (b, strength)]):
        chained = {key: weight.clone() for key, weight in projections(lent).items()}
    with applied(lent, [(combine([(a, 1.0), (b, strength)]), 1.0)]):
        for key, weight in projections(lent).items():
            torch.testing.assert_close(weight, chained[key], rtol=0, atol=1e-7)


def test_minus_one_undoes_and_nought_is_the_identity() -> None:
    lent, diff = small_denoiser(), small_diff()
    before = {key: weight.clone() for key, weight in projections(lent).items()}
    with applied(lent, [(diff, 0.0)]) as lost:
        assert lost.entries == 0
        assert all(torch.equal(w, before[k]) for k, w in projections(lent).items())
    with applied(lent, [(diff, 1.0), (diff, -1.0)]):
        for key, weight in projections(lent).items():
            torch.testing.assert_close(weight, before[key], rtol=0, atol=6e-8)


@pytest.mark.parametrize("strength", [2.1, -3.0, float("nan"), float("inf")])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(SpecError, match="strength"):
        combine([(small_diff(), strength)])
    with (
        pytest.raises(SpecError, match="strength"),
        applied(small_denoiser(), [(small_diff(), strength)]),
    ):
        pytest.fail("it was applied")


def test_other_kinds_of_model_do_not_mix() -> None:
    other = WeightDiff({KEY: SparseOffset.of(torch.ones(2, 2))})
    with pytest.raises(DiffError, match="other kinds of model"):
        added(small_diff(), other)
    with pytest.raises(DiffError, match="other families"):
        added(one([1] * 8, family="sd1"), one([1] * 8, family="sd2"))
    with pytest.raises(SpecError, match="at least one"):
        combine([])
    with pytest.raises(DiffError, match="other weights"):
        between({"a": torch.ones(2)}, {"a": torch.ones(3)})


def test_the_lineage_of_a_merged_diff() -> None:
    a, b, c = small_diff(), small_diff(1), small_diff(2, base=1)
    merged = combine([(a, 1.0), (b, -0.5)])
    assert merged.provenance["base"] == a.provenance["base"]
    assert [part["strength"] for part in merged.provenance["parts"]] == [1.0, -0.5]
    assert merged.provenance["parts"][1]["sha256"] == payload_sha256(b)
    assert merged.provenance["parts"][0]["spec"] == a.provenance["spec"]
    assert "base" not in added(a, c).provenance
    assert added(a, c).provenance["family"] == "demo"


def test_thinning_keeps_the_largest_of_each_layer() -> None:
    diff = small_diff()
    thin = thinned(diff, 0.02)
    for layer in ("input_blocks.1.1", "middle_block.1"):
        keys = [key for key in SHAPES if key.startswith(layer)]
        size = sum(diff.offsets[key].numel for key in keys)
        kept = torch.cat([thin.offsets[key].values.abs() for key in keys])
        every = torch.cat([diff.offsets[key].values.abs() for key in keys])
        assert len(kept) == -(-size * 2 // 100)
        assert kept.min() >= every.sort(descending=True).values[len(kept) - 1]
    assert 0.2 < energy(thin) / energy(diff) < 1
    assert thinned(diff, 1.0).changed == diff.changed
    assert thinned(diff, 0.0).changed == 0


def test_an_entry_that_several_diffs_move_is_touched_once() -> None:
    a, b, full = one([1, 2] + [0] * 6), one([0, 1, 1] + [0] * 5), one([1] * 8)
    assert touched([(a, 1.0)]) == 2
    assert touched([(a, 1.0), (b, -0.5)]) == 3
    assert touched([(a, 1.0), (b, 0.0)]) == 2
    assert touched([(a, 1.0), (full, 1.0)]) == 8
    assert touched([]) == 0


def test_overlap_and_fights() -> None:
    a = one([1, 1, 1, 1, 0, 0, 0, 0])
    same, against, apart = (one(v) for v in ([2, 2] + [0] * 6, [-1] * 4 + [1] * 4, [0] * 7 + [1]))
    assert overlap(a, same).verdict == "they pull the neurons they share the same way"
    assert (overlap(a, same).of_first, overlap(a, same).of_second) == (0.5, 1.0)
    fight = overlap(a, against)
    assert fight.verdict == "they fight over the neurons they share"
    assert (fight.shared, fight.opposed, fight.cancelled) == (4, 1.0, 1.0)
    assert fight.cosine == pytest.approx(-1)
    assert overlap(a, apart).verdict == "they hardly touch the same neurons"
    assert overlap(a, WeightDiff({})).shared == 0
    blind = overlap(small_diff(), small_diff(1))
    assert blind.of_first == pytest.approx(blind.by_chance, abs=0.02)
    assert abs(blind.cosine) < 0.2


def test_diffs_that_contradict_each_other_are_not_merged() -> None:
    def diff(*concepts: ConceptSpec) -> WeightDiff:
        return one([0.5] * 8, spec=UnlearnSpec(concepts).to_json())

    gun, cat = diff(ConceptSpec(("gun",), preserve=("a cat",))), diff(ConceptSpec(("Cats",)))
    assert combine([(gun, 1.0), (cat, -1.0)]).offsets  # adds the cat back
    with pytest.raises(SpecError, match="do not go together: preserve names the concept 'Cats'"):
        combine([(gun, 1.0), (cat, 1.0)])
    with pytest.raises(SpecError, match="do not go together"):
        combine([(combine([(gun, 1.0)]), 0.5), (cat, 1.0)])
    assert combine([(combine([(gun, 0.0), (cat, 1.0)]), 1.0), (cat, 1.0)]).offsets  # no gun in it


def test_each_of_many_beside_the_rest_is_what_a_pair_says() -> None:
    parts = [(small_diff(seed), strength) for seed, strength in ((0, 1.0), (1, -0.5), (2, 2.0))]
    weighed = [scaled(*part) for part in parts]
    for i, told in enumerate(overlap_with_rest(parts)):
        rest = combine([(diff, 1.0) for j, diff in enumerate(weighed) if j != i])
        pair = overlap(weighed[i], rest)
        assert told.shared == pair.shared > 0 and told.verdict == pair.verdict
        for name, value in pair.as_dict().items():
            if name != "verdict":
                assert getattr(told, name) == pytest.approx(value, abs=1e-5), name
    (alone,) = overlap_with_rest(parts[:1])
    assert (alone.shared, alone.of_first, alone.cosine) == (0, 0, 0)
    with pytest.raises(SpecError):
        overlap_with_rest([])
