"""What programs without TRUST can load: the same weights, the right names, the error as told."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toys.small_unet import (
    KEY,
    SHAPES,
    metadata,
    small_base,
    small_checkpoint,
    small_denoiser,
    small_diff,
    small_weights,
    stock,
)
from trust_engine.diff import (
    SparseOffset,
    WeightDiff,
    applied,
    combine,
    payload_sha256,
    save_diff,
)
from trust_engine.diff.apply import fingerprint_of
from trust_engine.diff.bake import write_checkpoint, write_unet_folder, write_unet_pt
from trust_engine.diff.base_model import open_base
from trust_engine.diff.lora import export_dense, export_lora
from trust_engine.errors import DiffError, ModelError, OutputError
from trust_engine.io.safetensors import write_all
from trust_engine.models.contract import projections
from trust_engine.models.unet_keys import LDM_PREFIX


def test_dense_is_exact_to_float16_and_names_match(tmp_path: Path) -> None:
    diff = small_diff()
    report = export_dense(diff, tmp_path / "my gun (v1).safetensors")
    tensors = load_file(tmp_path / "my gun (v1).safetensors")
    assert set(tensors) == {f"{stock(key)}.diff" for key in SHAPES}
    for key, offset in diff.offsets.items():
        assert torch.equal(tensors[f"{stock(key)}.diff"], offset.dense().half())
    assert 0 < report.error < 2**-11
    told = metadata(tmp_path / "my gun (v1).safetensors")
    assert told["ss_output_name"] == "my_gun_v1_"
    provenance = json.loads(told["trust-provenance"])
    assert provenance["sha256"] == payload_sha256(diff)
    assert provenance["base"] == small_base()


@pytest.mark.parametrize(
    ("width", "tags"),
    [
        (768, {"ss_base_model_version": "sd_v1"}),
        (1024, {"ss_base_model_version": "sd_v2", "ss_v2": "True"}),
        (2048, {"ss_base_model_version": "sdxl_base_v1-0"}),
    ],
)
def test_hosts_are_told_the_family(width: int, tags: dict[str, str], tmp_path: Path) -> None:
    """A1111 takes a file that says nothing for SD 1.x, and hides it from SDXL's list."""
    key = KEY.replace("to_q", "to_k")
    diff = WeightDiff({key: SparseOffset.of(torch.eye(4, width))})
    export_dense(diff, tmp_path / "a")
    assert {k: v for k, v in metadata(tmp_path / "a").items() if k in tags} == tags
    assert ("ss_v2" in metadata(tmp_path / "a")) == ("ss_v2" in tags)


def test_what_stock_loaders_would_skip_is_refused(tmp_path: Path) -> None:
    norm = WeightDiff({"out.0.weight": SparseOffset.of(torch.ones(4))})
    for export in (export_dense, export_lora):
        with pytest.raises(DiffError, match="carry no norms"):
            export(norm, tmp_path / "a")
        with pytest.raises(DiffError, match="changes nothing"):
            export(WeightDiff({}), tmp_path / "a")
    vast = SparseOffset((2**15, 2**15), torch.tensor([5]).int(), torch.ones(1))
    with pytest.raises(DiffError, match="larger than any weight"):
        export_dense(WeightDiff({KEY: vast}), tmp_path / "a")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [65504.0, 65505.0, 1e30, 1e-9])
def test_values_that_float16_does_not_hold(value: float, tmp_path: Path) -> None:
    diff = WeightDiff({KEY: SparseOffset.of(value * torch.eye(64))})
    if value == 65504.0:
        export_dense(diff, tmp_path / "a")
        assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "a").values())
        return
    says = "too small for float16" if value < 1 else "more than float16 holds"
    with pytest.raises(DiffError, match=says):
        export_dense(diff, tmp_path / "a")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_another_default_type_changes_no_byte(default: torch.dtype, tmp_path: Path) -> None:
    one, two = small_diff(), small_diff(1)
    for name in ("usual", "other"):
        torch.set_default_dtype(default if name == "other" else torch.float32)
        try:
            (tmp_path / name).mkdir()
            export_dense(one, tmp_path / name / "dense")
            export_lora(one, tmp_path / name / "lora", 0.5, 8)
            for how in ("sum", "mean", "strongest"):
                save_diff(combine([(one, 1.0), (two, 0.5)], how), tmp_path / name / how)
        finally:
            torch.set_default_dtype(torch.float32)
    for path in (tmp_path / "usual").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_patched_checkpoint_is_what_applying_gives(dtype: torch.dtype, tmp_path: Path) -> None:
    small_checkpoint(tmp_path / "base", dtype=dtype)
    before = (tmp_path / "base").read_bytes()
    parts = [(small_diff(), 1.0), (small_diff(1), -0.5)]
    with open_base(tmp_path / "base") as base:
        # bfloat16 keeps fewer digits than the fingerprint looks at
        assert len(base.check(parts, ["a", "b"])) == (2 if dtype == torch.bfloat16 else 0)
        lost = write_checkpoint(base, parts, tmp_path / "out")
    out, lent = load_file(tmp_path / "out"), small_denoiser(dtype=dtype)
    with applied(lent, parts) as expected:
        for key, weight in projections(lent).items():
            assert torch.equal(out[LDM_PREFIX + key], weight)
    assert lost.lost == pytest.approx(expected.lost)
    assert (lost.entries, lost.unmoved) == (expected.entries, expected.unmoved)
    for name, tensor in load_file(tmp_path / "base").items():
        assert out[name].dtype == tensor.dtype
        if "attn2" not in name:
            assert torch.equal(out[name], tensor)
    assert (tmp_path / "base").read_bytes() == before
    told = metadata(tmp_path / "out")
    assert told["modelspec.title"] == "small"
    assert "sshs_model_hash" not in told
    assert json.loads(told["trust-applied"])["diffs"][1]["strength"] == -0.5


def test_bases_of_every_layout_have_one_fingerprint(tmp_path: Path) -> None:
    weights = small_weights()
    write_all(tmp_path / "bare", weights, {})
    write_all(tmp_path / "half", {k: w.half() for k, w in weights.items()}, {})
    write_all(tmp_path / "comfy", {f"diffusion_model.{k}": w for k, w in weights.items()}, {})
    small_checkpoint(tmp_path / "full")
    with open_base(tmp_path / "full") as base:
        write_unet_folder(base, [], tmp_path / "folder")
    for name in ("bare", "half", "comfy", "full", "folder"):
        with open_base(tmp_path / name) as base:
            assert base.fingerprint() == small_base(), name
            assert base.family is not None
            assert base.family.name == "demo"


def test_a_diffusers_folder_and_a_state_dict(tmp_path: Path) -> None:
    small_checkpoint(tmp_path / "base")
    parts = [(small_diff(), 1.0)]
    with open_base(tmp_path / "base") as base:
        write_unet_folder(base, parts, tmp_path / "unet")
        write_unet_pt(base, parts, tmp_path / "unet.pt")
        with pytest.raises(OutputError, match="is there already"):
            write_unet_folder(base, parts, tmp_path / "unet")
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert config["_class_name"] == "UNet2DConditionModel"
    assert config["cross_attention_dim"] == 96
    tensors = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    state = torch.load(tmp_path / "unet.pt", weights_only=True)
    assert set(tensors) == set(state)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight"
    expected = small_weights()[KEY] + small_diff().offsets[KEY].dense()
    torch.testing.assert_close(tensors[name], expected)
    assert torch.equal(tensors["conv_in.weight"], small_weights()["input_blocks.0.0.weight"])
    assert all(torch.equal(tensors[name], state[name]) for name in state)
    assert sorted(os.listdir(tmp_path)) == ["base", "unet", "unet.pt"]


@pytest.mark.slow
def test_diffusers_loads_the_folder(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    from trust_engine.models.load import DEMO, load_model

    with open_base(DEMO) as base:
        write_unet_folder(base, [], tmp_path / "unet")
        fingerprint = base.fingerprint()
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    lent = load_model("demo", "cpu").denoiser
    state = lent.module.state_dict()
    assert all(torch.equal(weight.float(), state[k]) for k, weight in unet.state_dict().items())
    weights = projections(lent)
    assert fingerprint_of(weights, lambda key: weights[key]) == fingerprint


def test_wrong_models_are_refused(tmp_path: Path) -> None:
    small_checkpoint(tmp_path / "base")
    write_all(tmp_path / "foreign", {"a": torch.ones(2)}, {})
    write_all(tmp_path / "flux", {"double_blocks.0.img_attn.weight": torch.ones(2)}, {})
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").write_bytes((tmp_path / "base").read_bytes()[:-7])
    for name in ("foreign", "flux", "empty", "cut", "missing"):
        with pytest.raises(ModelError, match=name), open_base(tmp_path / name):
            pytest.fail("it was opened")
    with open_base(tmp_path / "base") as base:
        with pytest.raises(OutputError, match="is the model itself"):
            write_checkpoint(base, [], tmp_path / "base")
        strange = {**small_diff().provenance, "family": "sdxl"}
        with pytest.raises(DiffError, match="sdxl, this is demo"):
            base.check([(WeightDiff(small_diff().offsets, strange), 1.0)], ["x"])
        (warning,) = base.check([(small_diff(base=1), 1.0)], ["x"])
        assert small_base() in warning
        assert small_base(1) in warning
        with pytest.raises(DiffError, match="switch strict off"):
            base.check([(small_diff(base=1), 1.0)], ["x"], strict=True)


def test_scaled_float8_is_refused(tmp_path: Path) -> None:
    weights = small_weights()
    weights[KEY.replace(".weight", ".scale_weight")] = torch.ones(1)
    write_all(tmp_path / "base", weights, {})
    with pytest.raises(ModelError, match="scaled"), open_base(tmp_path / "base"):
        pytest.fail("it was opened")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """The peak stays below 1.5 times the largest tensor, in a file of six of that size."""
    key = KEY.replace("to_q", "to_k")
    shape, size = (40_000, 96), 40_000 * 96 * 4
    tensors = {f"{LDM_PREFIX}input_blocks.{i}.1.x.weight": torch.ones(shape) for i in range(5)}
    write_all(tmp_path / "base", {**tensors, LDM_PREFIX + key: torch.ones(shape)}, {})
    del tensors
    gc.collect()
    sparse = SparseOffset(shape, torch.arange(0, 40_000 * 96, 1000).int(), torch.ones(3840))
    with open_base(tmp_path / "base") as base:
        for _ in range(2):  # the first time, torch and the allocator settle
            Path("/proc/self/clear_refs").write_text("5")
            before = memory("VmRSS")
            write_checkpoint(base, [(WeightDiff({key: sparse}), 1.0)], tmp_path / "out")
            peak = memory("VmHWM") - before
    assert (tmp_path / "out").stat().st_size > 6 * size
    assert peak < 1.5 * size


def memory(field: str) -> int:
    """Read a figure of this process's memory, in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{field}:")[1].split()[0])
