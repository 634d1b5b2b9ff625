"""Which model a diff goes on, what its number type loses, and weights of every layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from toys.small_unet import KEY, SHAPES, small_base, small_denoiser, small_diff, small_weights
from trust_engine.diff import WeightDiff, applied, check_fits, describe_base, fingerprint
from trust_engine.errors import DiffError
from trust_engine.models.contract import projections, scaled_linear
from trust_engine.models.unet_families import FAMILIES, family_of


def bits(lent: object) -> dict[str, bytes]:
    """Take down every weight's bytes."""
    named = lent.module.named_parameters()  # type: ignore[attr-defined]
    return {k: w.detach().contiguous().view(torch.uint8).numpy().tobytes() for k, w in named}


def test_the_base_is_described() -> None:
    lent = small_denoiser()
    told = describe_base(lent)
    assert told == {"base": small_base(), "family": "demo", "prediction": "eps"}
    assert fingerprint(small_denoiser(dtype=torch.float16)) == told["base"]


def test_another_base_of_the_family_is_a_warning_unless_strict() -> None:
    diff, other = small_diff(), small_denoiser(seed=1)
    assert check_fits(diff, small_denoiser()) is None
    warning = check_fits(diff, other, "a.safetensors")
    assert warning
    assert all(t in warning for t in ("a.safetensors", small_base(), small_base(1), "audit"))
    with pytest.raises(DiffError, match="made for another model"):
        check_fits(diff, other, strict=True)
    predicts = replace(small_denoiser(), schedule=scaled_linear("v"))
    assert "predicts" in (check_fits(diff, predicts) or "")


def test_another_family_or_shape_is_refused() -> None:
    diff = small_diff()
    for wrong in (
        replace(diff, provenance={**diff.provenance, "family": "sdxl"}),
        WeightDiff({"no.such.weight": diff.offsets[KEY]}),
        WeightDiff({KEY: replace(diff.offsets[KEY], shape=(64, 65))}),
    ):
        with pytest.raises(DiffError, match="another kind of model"):
            check_fits(wrong, small_denoiser())


def test_any_weight_of_the_unet_can_be_touched() -> None:
    lent, key = small_denoiser(), "input_blocks.0.0.weight"
    diff = WeightDiff({key: replace(small_diff().offsets[KEY], shape=(64, 4, 3, 3))})
    diff = WeightDiff({key: diff.offsets[key].at(diff.offsets[key].indices < 64 * 36)})
    assert check_fits(diff, lent)  # fits, though it does not say which base it is from
    with applied(lent, [(diff, 1.0)]):
        got = dict(lent.module.named_parameters())[key]
        torch.testing.assert_close(got, small_weights()[key] + diff.offsets[key].dense())


def test_families_by_text_width() -> None:
    assert family_of(SHAPES) == "demo"
    for name, family in FAMILIES.items():
        assert family_of({KEY.replace("to_q", "to_k"): (320, family.context)}) == name
    assert family_of({KEY: (320, 320)}) is None
    assert family_of({KEY.replace("to_q", "to_k"): (320, 5)}) is None


def test_weights_in_other_strides_are_patched_and_restored() -> None:
    lent, diff = small_denoiser(), small_diff()
    for weight in lent.module.parameters():
        turned = weight.data.transpose(0, 1).contiguous().transpose(0, 1)
        weight.data = turned
        assert not weight.is_contiguous()
    before, expected = bits(lent), {k: o.dense() for k, o in diff.offsets.items()}
    with applied(lent, [(diff, 1.0)]):
        for key, weight in projections(lent).items():
            torch.testing.assert_close(weight, small_weights()[key] + expected[key])
    assert bits(lent) == before


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        (torch.float32, 0.0, 1e-6),
        (torch.float16, 1e-5, 1e-2),
        (torch.bfloat16, 1e-4, 5e-2),
        (torch.float8_e4m3fn, 1e-2, 0.5),
    ],
)
def test_what_the_number_type_loses_is_measured(
    dtype: torch.dtype, low: float, high: float
) -> None:
    lent, diff = small_denoiser(dtype=dtype), small_diff()
    before = bits(lent)
    with applied(lent, [(diff, 1.0)]) as lost:
        assert bits(lent) != before
        wanted = error = 0.0
        for key, weight in projections(lent).items():
            start = small_weights(dtype=dtype)[key].float()
            offset = diff.offsets[key].dense()
            wanted += float(offset.square().sum())
            error += float((weight.float() - start - offset).square().sum())
        assert lost.lost == pytest.approx((error / wanted) ** 0.5, rel=1e-3, abs=1e-9)
    assert low <= lost.lost <= high
    assert lost.entries == diff.changed
    assert "rounding lost" in str(lost)
    assert bits(lent) == before


def test_too_strong_for_the_number_type_is_refused_and_taken_back() -> None:
    lent = small_denoiser(dtype=torch.float16)
    before, diff = bits(lent), small_diff()
    offset = diff.offsets[KEY]
    last = list(SHAPES)[-1]
    huge = {last: replace(diff.offsets[last], values=diff.offsets[last].values * 0 + 5e4)}
    with (
        pytest.raises(DiffError, match="choose a smaller one"),
        applied(lent, [(WeightDiff({KEY: offset, **huge}), 2.0)]),
    ):
        pytest.fail("it was applied")
    assert bits(lent) == before
