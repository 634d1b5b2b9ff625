"""LoRA exports: their rank, their error and what they tell of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toys.small_unet import KEY, SHAPES, metadata, small_diff, stock
from trust_engine.diff import LowRankOffset, SparseOffset, WeightDiff
from trust_engine.diff.lora import export_lora, low_rank


def lora_weight(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Put a LoRA together as hosts do: up @ down * alpha / rank, flattened."""
    up, down = (tensors[f"{name}.lora_{part}.weight"].float() for part in ("up", "down"))
    scale = tensors[f"{name}.alpha"].item() / down.shape[0]
    return up.flatten(1) @ down.flatten(1) * scale


def low_rank_diff() -> WeightDiff:
    """Make a diff of rank 3 and some noise, one weight of it a convolution."""
    chance = torch.Generator().manual_seed(0)
    offsets = {}
    for key, shape in {**SHAPES, "input_blocks.0.0.weight": (64, 8, 3, 3)}.items():
        m, n = shape[0], torch.Size(shape[1:]).numel()
        up, down = torch.randn(m, 3, generator=chance), torch.randn(3, n, generator=chance)
        noise = torch.randn(m, n, generator=chance) * 0.05
        offsets[key] = SparseOffset.of((1e-3 * (up @ down + noise)).view(shape))
    return WeightDiff(offsets, small_diff().provenance)


@pytest.mark.parametrize("bound", [0.3, 0.1])
def test_lora_keeps_its_error_bound_and_tells_the_truth(bound: float, tmp_path: Path) -> None:
    diff = low_rank_diff()
    report = export_lora(diff, tmp_path / "a", bound)
    tensors = load_file(tmp_path / "a")
    errors = {}
    for key, offset in diff.offsets.items():
        wanted = offset.dense().flatten(1)
        errors[key] = float((lora_weight(tensors, stock(key)) - wanted).norm() / wanted.norm())
    assert max(errors.values()) <= bound
    assert report.worst == pytest.approx(max(errors.values()), rel=1e-3)
    assert errors[report.worst_key] == max(errors.values())
    assert set(report.ranks) == {3}
    assert report.dense == 0
    told = json.loads(metadata(tmp_path / "a")["trust-provenance"])
    assert told["worst"] == report.worst
    assert "error" in str(report)


@pytest.mark.parametrize("seed", range(0, 60, 4))
def test_lora_of_a_few_entries_in_a_few_rows(seed: int) -> None:
    """As a diff's are; in float32 LAPACK gives up on some of these."""
    chance = torch.Generator().manual_seed(seed)
    rows = torch.randperm(64, generator=chance)[: max(4, seed % 16)]
    columns = torch.randint(64, (55,), generator=chance)
    rows = rows[torch.randint(len(rows), (55,), generator=chance)]
    size = torch.randn(55, generator=chance) * torch.exp(1.5 * torch.randn(55, generator=chance))
    matrix = torch.zeros(64, 64)
    matrix[rows, columns] = 0.2 * size
    factors = low_rank(matrix, 1e-3, None)
    assert factors is not None
    up, down = (factor.float() for factor in factors)
    assert float((up @ down - matrix).norm() / matrix.norm()) < 2e-3


def test_lora_is_as_good_as_svd() -> None:
    matrix = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
    for turned in (matrix, matrix.T.contiguous()):
        factors = low_rank(turned, 0.0, 10)
        assert factors is not None
        up, down = factors
        best = torch.linalg.svdvals(turned)[10:].square().sum().sqrt()
        got = (up.float() @ down.float() - turned).norm()
        torch.testing.assert_close(got, best, rtol=1e-3, atol=0)
        assert up.shape == (turned.shape[0], 10)


def test_a_weight_of_full_rank_is_kept_dense_and_a_capped_rank_is_reported(tmp_path: Path) -> None:
    diff = small_diff()
    report = export_lora(diff, tmp_path / "a", 0.01)
    assert report.dense == len(SHAPES)
    assert report.ranks == ()
    assert torch.equal(
        load_file(tmp_path / "a")[f"{stock(KEY)}.diff"], diff.offsets[KEY].dense().half()
    )
    capped = export_lora(diff, tmp_path / "b", 0.01, max_rank=4)
    assert set(capped.ranks) == {4}
    assert capped.error > 0.5


def test_entries_beside_factors_are_not_lost_among_them(tmp_path: Path) -> None:
    """The bound is of the entries, which are a thousandth of what the factors move."""
    chance = torch.Generator().manual_seed(0)
    up, down = (10 * torch.randn(*shape, generator=chance) for shape in ((64, 2), (2, 64)))
    dense = torch.zeros(64, 64)
    dense[3], dense[40] = 0.05, 0.02 * torch.randn(64, generator=chance)
    entries = SparseOffset.of(dense)
    offset = LowRankOffset(up, down, entries)
    export_lora(WeightDiff({KEY: offset}, small_diff().provenance), tmp_path / "a", 0.1)
    tensors = load_file(tmp_path / "a")
    # In float16 the factors alone are off by more than that: theirs are left out of the comparison.
    name = stock(KEY)
    ranks = tensors[f"{name}.lora_down.weight"].shape[0]
    assert ranks == 4
    tail = {
        "up": tensors[f"{name}.lora_up.weight"].float()[:, 2:],
        "down": tensors[f"{name}.lora_down.weight"].float()[2:],
    }
    scale = tensors[f"{name}.alpha"].item() / ranks
    off = (scale * tail["up"] @ tail["down"] - dense).norm()
    assert off <= 0.1 * dense.norm()


def test_entries_beside_factors_that_low_rank_does_not_hold_are_kept_whole(tmp_path: Path) -> None:
    chance = torch.Generator().manual_seed(0)
    up, down = (torch.randn(*shape, generator=chance) for shape in ((64, 2), (2, 64)))
    entries = SparseOffset.of(1e-3 * torch.randn(64, 64, generator=chance))
    offset = LowRankOffset(up, down, entries)
    report = export_lora(WeightDiff({KEY: offset}, small_diff().provenance), tmp_path / "a", 0.1)
    tensors = load_file(tmp_path / "a")
    torch.testing.assert_close(
        tensors[f"{stock(KEY)}.diff"].float(), offset.dense(), rtol=1e-3, atol=1e-4
    )
    assert report.error < 1e-3
