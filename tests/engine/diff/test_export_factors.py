"""Products of factors as LoRA files: exact, in the forms that every stock loader multiplies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine.diff.test_diff_file import scrubbed_sd15
from safetensors.torch import load_file
from torch import Tensor

from toys.small_unet import KEY, SHAPES, low_rank, metadata, scrubbed_diff, small_diff, stock
from trust_engine.diff import LowRankOffset, SparseOffset, WeightDiff
from trust_engine.diff.lora import export_dense, export_lora
from trust_engine.diff.lora_factors import numel, rebuilt, stock_parts
from trust_engine.errors import DiffError

Tensors = dict[str, Tensor]


def comfyui(tensors: Tensors, name: str, shape: tuple[int, ...]) -> Tensor:
    """Multiply as LoRAAdapter.calculate_weight does, and Forge's merge_lora_to_weight."""
    first, second = (tensors[f"{name}.lora_{part}.weight"].float() for part in ("up", "down"))
    alpha = tensors[f"{name}.alpha"].item() / second.shape[0]
    if f"{name}.lora_mid.weight" in tensors:
        mid = tensors[f"{name}.lora_mid.weight"].float()
        final = [second.shape[1], second.shape[0], mid.shape[2], mid.shape[3]]
        turned = second.transpose(0, 1).flatten(start_dim=1)
        second = torch.mm(turned, mid.transpose(0, 1).flatten(start_dim=1))
        second = second.reshape(final).transpose(0, 1)
    return alpha * torch.mm(first.flatten(start_dim=1), second.flatten(start_dim=1)).reshape(shape)


def a1111(tensors: Tensors, name: str, shape: tuple[int, ...]) -> Tensor:
    """Multiply as NetworkModuleLora.calc_updown does."""
    up, down = (tensors[f"{name}.lora_{part}.weight"].float() for part in ("up", "down"))
    scale = tensors[f"{name}.alpha"].item() / down.shape[0]
    up = up.reshape(up.size(0), -1)
    if f"{name}.lora_mid.weight" in tensors:
        mid = tensors[f"{name}.lora_mid.weight"].float()
        down = down.reshape(down.size(0), -1)
        return scale * torch.einsum("n m k l, i n, m j -> i j k l", mid, up, down)
    return scale * (up @ down.reshape(down.size(0), -1)).reshape(shape)


HOSTS = {"comfyui": comfyui, "a1111": a1111}
FORMS = {
    "linear": ((64, 48), 3, None),
    "one tap": ((64, 48, 1, 1), 3, None),
    "each direction to its taps": ((64, 48, 3, 3), 2, 18),
    "the kernel in the middle": ((16, 48, 3, 3), 4, 16),
    "more directions than outputs": ((4, 64, 3, 3), 5, 5),
    "another kernel": ((64, 48, 1, 3), 2, 6),
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e3])
def test_every_form_is_exact_in_every_loader(
    form: str, host: str, size: float, tmp_path: Path
) -> None:
    """Sizes that differ between factors and directions cost no digits in float16."""
    shape, rank, wide = FORMS[form]
    offset = low_rank(shape, rank)
    sizes = torch.logspace(-3, 3, rank)
    taps = [1] * (len(shape) - 2)
    offset = LowRankOffset(
        size * offset.up / sizes.view(1, -1, *taps), offset.down * sizes.view(-1, 1)
    )
    offset = offset.compact()  # type: ignore[assignment]
    multiply: Callable[..., Tensor] = HOSTS[host]
    report = export_lora(WeightDiff({KEY: offset}), tmp_path / "a")
    tensors = load_file(tmp_path / "a")
    got = multiply(tensors, stock(KEY), shape)
    assert got.shape == shape
    error = (got - offset.dense()).norm() / offset.dense().norm()
    assert error < 2e-6
    assert report.error < 2e-6 and report.ranks == (rank,) and report.dense == 0
    parts = {name.split(".", 1)[1]: tensor for name, tensor in tensors.items()}
    torch.testing.assert_close(rebuilt(parts), got)
    assert ("lora_mid.weight" in parts) == (wide is not None)
    if wide is not None:
        assert parts["lora_mid.weight"].shape == (wide, wide, *shape[2:])
    assert parts["alpha"].item() == len(parts["lora_down.weight"])
    assert all(t.dtype == torch.float16 for name, t in parts.items() if name != "alpha")


def test_a_scrubbed_diff_goes_out_whole(tmp_path: Path) -> None:
    """Factors as they are; what is sparse, or both, as ever: by SVD, or dense."""
    diff = scrubbed_diff().compact()
    report = export_lora(diff, tmp_path / "a", bound=0.05)
    tensors = load_file(tmp_path / "a")
    assert (min(report.ranks), max(report.ranks)) == (3, 5)
    assert report.dense == len(SHAPES) - 1
    assert metadata(tmp_path / "a")["ss_network_dim"] == "5"
    for key, offset in diff.offsets.items():
        name = stock(key)
        if f"{name}.diff" in tensors:
            got = tensors[f"{name}.diff"].float()
        else:
            got = comfyui(tensors, name, offset.shape)
        torch.testing.assert_close(got, offset.dense(), rtol=2e-3, atol=2e-5)
    dense = export_dense(diff, tmp_path / "b")
    assert dense.error < 2**-11
    for key, offset in diff.offsets.items():
        assert torch.equal(load_file(tmp_path / "b")[f"{stock(key)}.diff"], offset.dense().half())


def test_a_capped_rank_caps_factors_too(tmp_path: Path) -> None:
    offset = low_rank(SHAPES[KEY], 6)
    report = export_lora(WeightDiff({KEY: offset}), tmp_path / "a", 0.01, max_rank=2)
    assert report.ranks == (2,) and report.error > 0.3
    assert len(load_file(tmp_path / "a")[f"{stock(KEY)}.lora_down.weight"]) == 2


def test_factors_that_take_more_than_the_weight_are_kept_dense(tmp_path: Path) -> None:
    offset = low_rank((6, 6), 4)
    assert export_lora(WeightDiff({KEY: offset}), tmp_path / "a").dense == 1


def test_a_bias_goes_beside_its_layers_dense_weight(tmp_path: Path) -> None:
    """AUTOMATIC1111 would leave a bias beside factors out without a word."""
    key = "out.2.weight"
    bias = SparseOffset.of(torch.tensor([0.0, 0.5, -0.25, 1.0]))
    diff = scrubbed_diff()
    diff = replace(diff, offsets={**diff.offsets, "out.2.bias": bias})
    assert export_lora(diff, tmp_path / "a").dense >= 2
    export_dense(diff, tmp_path / "b")
    for name in "ab":
        tensors = load_file(tmp_path / name)
        assert torch.equal(tensors["lora_unet_out_2.diff"], diff.offsets[key].dense().half())
        assert torch.equal(tensors["lora_unet_out_2.diff_b"], bias.dense().half())
        assert not any(n.startswith("lora_unet_out_2.lora") for n in tensors)
    for alone in ({"out.2.bias": bias}, {**small_diff().offsets, "out.0.bias": bias}):
        with pytest.raises(DiffError, match="biases only beside their layer's weight"):
            export_lora(WeightDiff(alone), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_product_that_float16_does_not_hold(tmp_path: Path) -> None:
    with pytest.raises(DiffError, match="more than float16 holds"):
        export_lora(WeightDiff({KEY: low_rank(SHAPES[KEY], 2).times(1e7)}), tmp_path / "a")


def test_scrubbing_sd15_fits_in_far_under_40_mb() -> None:
    """1,000 directions over all the layers that scrubbing changes."""
    diff = scrubbed_sd15(1000)
    total = 0
    for offset in diff.offsets.values():
        assert offset.factors is not None
        parts = stock_parts(*offset.factors)
        assert numel(parts) < offset.numel
        total += 2 * numel(parts)
    assert total < 14e6
