"""Odd model files: copies of the UNet, scaled weights, shards, folders, and what was applied."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.toys.small_unet import (
    KEY,
    SHAPES,
    metadata,
    small_base,
    small_checkpoint,
    small_denoiser,
    small_diff,
    small_weights,
)
from trust_engine.cli.main import main
from trust_engine.diff import SparseOffset, WeightDiff, applied, bake, save_diff
from trust_engine.diff.bake import left_out, write_checkpoint, write_unet_folder
from trust_engine.diff.base_model import open_base
from trust_engine.errors import DiffError, ModelError, OutputError
from trust_engine.io.safetensors import write_all
from trust_engine.models.demo_architecture import UNET_CONFIG
from trust_engine.models.unet_families import FAMILIES
from trust_engine.models.unet_keys import LDM_PREFIX, KeyMap

Change = Callable[[dict[str, Tensor]], None]
FULL = [(small_diff(), 1.0)]


def odd(
    path: Path, change: Change | dict[str, Tensor], about: dict[str, str] | None = None
) -> Path:
    """Write the small checkpoint, changed."""
    small_checkpoint(path)
    tensors = load_file(path)
    tensors.update(change) if isinstance(change, dict) else change(tensors)
    write_all(path, tensors, about or {})
    return path


def spelled(spelling: Callable[[str], str]) -> dict[str, Tensor]:
    """Name a second copy of the UNet's weights, which differ a little, as averages do."""
    return {spelling(key): weight * 1.001 for key, weight in small_weights().items()}


def diffusers(key: str) -> str:
    return KeyMap(FAMILIES["demo"].shape).to_diffusers(key)


COPIES: dict[str, Callable[[str], str]] = {
    "ldm's averages": lambda k: "model_ema.diffusion_model" + k.replace(".", ""),
    "averages of the UNet": lambda k: "model_ema." + k.replace(".", ""),
    "averages with dots": lambda k: "model_ema.diffusion_model." + k,
    "a bare copy": lambda k: k,
    "ComfyUI's": lambda k: "diffusion_model." + k,
    "diffusers'": lambda k: "unet_ema." + diffusers(k),
    "diffusers', bare": diffusers,
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_second_copy_gets_the_same_changes(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spelling = COPIES[kind]
    base, out = odd(tmp_path / "base", spelled(spelling)), tmp_path / "out"
    save_diff(small_diff(), tmp_path / "d")
    assert main(f"diff apply {tmp_path / 'd'} --model {base} --out {out}".split()) == 0
    said = capsys.readouterr()
    assert "second copy of the UNet" in said.err
    assert f"{small_diff().changed:,} entries changed" in said.out  # the copy is not counted again
    before, after = load_file(base), load_file(out)
    for key, offset in small_diff().offsets.items():
        for name in (LDM_PREFIX + key, spelling(key)):
            assert torch.equal(after[name], before[name] + offset.dense()), name


@pytest.mark.parametrize(
    "copy",
    [
        {f"control_model.{k}": torch.ones(s) for k, s in SHAPES.items() if "input" in k},
        {f"diffusion_model.{k}": torch.ones(3, 3) for k in SHAPES},
        {"model_ema.diffusion_model" + KEY.replace(".", ""): torch.ones(SHAPES[KEY])},
    ],
)
def test_a_part_of_a_copy_is_refused(copy: dict[str, Tensor], tmp_path: Path) -> None:
    base = odd(tmp_path / "base", copy)
    with pytest.raises(ModelError, match="a part of a second UNet under"), open_base(base):
        pytest.fail("it was opened")


def _beside(name: str) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        stem = (LDM_PREFIX + KEY).removesuffix("weight")
        tensors[name.format(w=f"{stem}weight", s=stem)] = torch.ones(1)

    return change


@pytest.mark.parametrize(
    "name",
    [
        "{w}_scale", "{w}_scale_2", "{w}_scale_inv", "{s}scale_weight", "{s}scale_input",
        "{s}input_scale", "scaled_fp8", "model.diffusion_model.scaled_fp8", "{s}comfy_quant",
        "{w}.scale", "{w}.absmax", "{w}.quant_map", "{w}.nested_absmax", "{s}SCB",
        "{w}.quant_state.bitsandbytes__nf4", "{s}qweight", "{s}qzeros", "{s}scales", "{s}g_idx",
        "{w}._data", "{w}._scale", "{s}wscales", "{s}smooth_factor", "{s}weight_packed", "{s}W_q",
        "cond_stage_model.x.weight_scale",
    ],
)  # fmt: skip
def test_scaled_weights_are_refused_by_every_spelling(name: str, tmp_path: Path) -> None:
    base = odd(tmp_path / "base", _beside(name))
    with pytest.raises(ModelError, match="stored scaled or quantised"), open_base(base):
        pytest.fail("it was opened")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_weights_that_are_whole_numbers_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    base = odd(tmp_path / "base", {LDM_PREFIX + KEY: torch.ones(SHAPES[KEY]).to(dtype)})
    with pytest.raises(ModelError, match=f"{KEY} is of type"), open_base(base):
        pytest.fail("it was opened")


def test_a_declared_quantisation_is_refused(tmp_path: Path) -> None:
    base = odd(tmp_path / "base", {}, {"_quantization_metadata": '{"layers": {"a": "fp8"}}'})
    with pytest.raises(ModelError, match="declares it"), open_base(base):
        pytest.fail("it was opened")


def test_what_looks_like_a_scale_and_is_none_is_read(tmp_path: Path) -> None:
    names = ("cond_stage_model.model.logit_scale", "layer_scale.scale", "position_ids")
    base = odd(tmp_path / "base", {name: torch.ones(1) for name in names})
    with open_base(base) as opened:
        assert opened.fingerprint() == small_base()


def test_a_number_type_too_coarse_for_the_change_is_an_error(tmp_path: Path) -> None:
    weights = {LDM_PREFIX + k: w.to(torch.float8_e5m2) for k, w in small_weights().items()}
    write_all(tmp_path / "base", weights, {})
    with (
        open_base(tmp_path / "base") as base,
        pytest.raises(DiffError, match=r"too coarse.*rounding lost \d+\.\d+%.*nothing was written"),
    ):
        write_checkpoint(base, FULL, tmp_path / "out")
    assert os.listdir(tmp_path) == ["base"]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("key", [KEY, "out.2.weight"])
def test_what_is_not_finite_is_named(key: str, bad: float, tmp_path: Path) -> None:
    weight = small_weights()[key]
    weight.view(-1)[-1] = bad
    with (
        pytest.raises(ModelError, match=f"NaN or infinite values .*{key}"),
        open_base(odd(tmp_path / "base", {LDM_PREFIX + key: weight})) as base,
    ):
        write_checkpoint(base, FULL, tmp_path / "out")
    assert os.listdir(tmp_path) == ["base"]


def test_a_lent_model_that_is_not_finite_is_named() -> None:
    lent = small_denoiser()
    with torch.no_grad():
        dict(lent.module.named_parameters())[KEY].fill_(torch.nan)
    with (
        pytest.raises(DiffError, match=f"{KEY}: the model holds NaN"),
        applied(lent, FULL),
    ):
        pytest.fail("it was applied")


def test_a_mask_may_be_infinite(tmp_path: Path) -> None:
    """OpenCLIP's towers hold their causal mask as a tensor."""
    mask = torch.full((3, 3), -torch.inf)
    base = odd(tmp_path / "base", {"cond_stage_model.model.attn_mask": mask})
    with open_base(base) as opened:
        write_checkpoint(opened, FULL, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out")["cond_stage_model.model.attn_mask"], mask)


def named(words: str, seed: int, base: str) -> WeightDiff:
    spec = json.dumps({"concept": {"words": [words], "kind": "single"}})
    return WeightDiff(small_diff(seed).offsets, {"spec": spec, "base": base, "family": "demo"})


def fingerprint(path: Path) -> str:
    with open_base(path) as base:
        return base.fingerprint()


def put(diff: WeightDiff, base: Path, out: Path, strength: float = 1.0) -> list[str]:
    with open_base(base) as opened:
        said = opened.check([(diff, strength)], ["d"])
        write_checkpoint(opened, [(diff, strength)], out)
    return said


def test_the_record_keeps_all_that_was_applied(tmp_path: Path) -> None:
    base, one, two = small_checkpoint(tmp_path / "base"), tmp_path / "one", tmp_path / "two"
    gun, cat = named("gun", 0, small_base()), named("cat", 1, small_base())
    assert put(gun, base, one) == []
    (said,) = put(cat, one, two)  # made for the model without gun in it
    assert "made for the model that this was before gun was put into it" in said
    record = json.loads(metadata(two)["trust-applied"])
    assert record["base"] == small_base()
    assert [json.loads(d["spec"])["concept"]["words"] for d in record["diffs"]] == [
        ["gun"],
        ["cat"],
    ]
    assert record["diffs"][1]["onto"] == fingerprint(one)
    for diff in (gun, cat):
        with open_base(two) as opened, pytest.raises(DiffError, match=r"is in .*two already"):
            opened.check([(diff, 0.5)], ["d"])
    assert put(gun, two, tmp_path / "back", -1.0) == []  # takes it back
    assert len(json.loads(metadata(tmp_path / "back")["trust-applied"])["diffs"]) == 3
    with open_base(tmp_path / "back") as opened:
        opened.check([(gun, 1.0)], ["d"])


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"base": 1, "diffs": []}', '{"base": "", "diffs": 1}']
)
def test_a_damaged_record_is_an_error(text: str, tmp_path: Path) -> None:
    base = odd(tmp_path / "base", {}, {"trust-applied": text})
    with open_base(base) as opened, pytest.raises(ModelError, match="its record of the diffs"):
        opened.check(FULL, ["d"])


def model_folder(folder: Path, shards: int = 1, variant: str = "") -> Path:
    """Write the small UNet as a diffusers model, with what such folders hold besides."""
    (folder / "unet").mkdir(parents=True)
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "x"]}
    for part in ("text_encoder", "vae", "tokenizer"):
        (folder / part).mkdir()
        (folder / part / "content").write_text(part)
        index[part] = ["transformers", "x"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "README.md").write_text("a model")
    (folder / "unet" / "config.json").write_text(json.dumps(UNET_CONFIG, default=list))
    tensors = {diffusers(key): weight for key, weight in small_weights().items()}
    there, dot = folder / "unet", f".{variant}" if variant else ""
    if shards == 1:
        write_all(there / f"diffusion_pytorch_model{dot}.safetensors", tensors, {})
        return folder
    files: dict[str, str] = {}
    for number in range(shards):
        name = f"diffusion_pytorch_model{dot}-{number + 1:05}-of-{shards:05}.safetensors"
        part_of = dict(list(tensors.items())[number::shards])
        write_all(there / name, part_of, {})
        files |= dict.fromkeys(part_of, name)
    weights = json.dumps({"weight_map": files})
    (there / f"diffusion_pytorch_model.safetensors.index{dot}.json").write_text(weights)
    return folder


def weights_of(folder: Path) -> dict[str, Tensor]:
    files = sorted((folder / "unet").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("variant", ["", "fp16", "bf16", "non_ema"])
def test_folders_of_all_kinds_are_read_and_written(
    shards: int, variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_folder(tmp_path / "model", shards, variant)
    assert fingerprint(model) == fingerprint(model / "unet") == small_base()
    save_diff(small_diff(), tmp_path / "d")
    out = tmp_path / "new" / "out"
    line = f"diff export {tmp_path / 'd'} --format checkpoint --model {model} --out {out}"
    assert main(line.split()) == 0
    assert "left out" not in capsys.readouterr().err
    below = lambda folder: sorted(p.relative_to(folder) for p in folder.rglob("*"))  # noqa: E731
    assert below(out) == below(model)
    before, after = weights_of(model), weights_of(out)
    for key, weight in small_weights().items():
        offset = small_diff().offsets.get(key)
        expected = weight if offset is None else weight + offset.dense()
        assert torch.equal(after[diffusers(key)], expected)
    assert before.keys() == after.keys()
    with open_base(out) as base, pytest.raises(DiffError, match="already"):
        base.check(FULL, ["d"])


def test_other_copies_in_a_folder_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_folder(tmp_path / "model")
    plain = model / "unet" / "diffusion_pytorch_model.safetensors"
    (model / "unet_ema").mkdir()
    for name in ("unet/diffusion_pytorch_model.fp16.safetensors", "unet_ema/x.safetensors",
                 "v1-5-pruned.safetensors"):  # fmt: skip
        (model / name).write_bytes(plain.read_bytes())
    for name in ("unet/diffusion_pytorch_model.bin", "v1-5.ckpt", ".gitattributes"):
        (model / name).write_bytes(b"PK")
    with open_base(model) as base:
        assert left_out(base) == [
            "unet_ema", "v1-5-pruned.safetensors", "v1-5.ckpt",
            "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
        ]  # fmt: skip
    save_diff(small_diff(), tmp_path / "d")
    out = tmp_path / "out"
    assert main(f"diff apply {tmp_path / 'd'} --model {model} --out {out}".split()) == 0
    assert "v1-5.ckpt" in capsys.readouterr().err
    left = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.suffix in (".bin", ".ckpt"))
    assert left == []
    assert sorted(p.name for p in out.rglob("*.safetensors")) == [plain.name]


@pytest.mark.parametrize("name", ["out.safetensors", "model/out", "taken"])
def test_where_a_folder_may_not_be_written(name: str, tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    (tmp_path / "taken").mkdir()
    save_diff(small_diff(), tmp_path / "d")
    line = f"diff apply {tmp_path / 'd'} --model {model} --out {tmp_path / name}"
    assert main(line.split()) == 2
    assert sorted(os.listdir(model)) == sorted(
        ["README.md", "model_index.json", "text_encoder", "tokenizer", "unet", "vae"]
    )
    assert os.listdir(tmp_path / "taken") == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX file modes")
def test_a_folder_is_no_more_open_than_the_umask_lets_it_be(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with open_base(small_checkpoint(tmp_path / "base")) as base:
            write_unet_folder(base, FULL, tmp_path / "unet")
            with pytest.raises(OutputError, match="is there already"):
                write_unet_folder(base, FULL, tmp_path / "unet")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "unet").stat().st_mode) == 0o700
    for path in (tmp_path / "unet").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_killed_exports_folder_goes_with_the_next_one(tmp_path: Path) -> None:
    killed, alive = tmp_path / ".trust-dead", tmp_path / ".trust-alive"
    for folder in (killed, alive, tmp_path / ".trust-foreign"):
        folder.mkdir()
    (killed / ".lock").write_bytes(b"")
    (killed / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    with open_base(small_checkpoint(tmp_path / "base")) as base, bake._in_use(alive):
        write_unet_folder(base, FULL, tmp_path / "unet")
        assert sorted(os.listdir(tmp_path)) == [".trust-alive", ".trust-foreign", "base", "unet"]
        assert os.listdir(alive) == [".lock"]
    assert os.listdir(alive) == []
    assert sorted(os.listdir(tmp_path / "unet")) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("missing", "00002-of-00003.safetensors: no such file"),
        ("pointer", "a Git LFS pointer"),
        ("twice", "is in another shard, too"),
        ("variants", "holds variants a, b"),
        ("pickle", "there is diffusion_pytorch_model.bin; convert it"),
        ("config", "quantization_config"),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(change: str, says: str, tmp_path: Path) -> None:
    unet = model_folder(tmp_path / "model", 3) / "unet"
    first, second, third = sorted(unet.glob("*.safetensors"))
    if change == "missing":
        second.unlink()
    elif change == "pointer":
        second.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif change == "twice":
        second.write_bytes(first.read_bytes())
    elif change == "config":
        (unet / "config.json").write_text('{"quantization_config": {"quant_method": "x"}}')
    else:
        for path in (*unet.glob("*.index.json"), second, third):
            path.unlink()
        first.rename(unet / ("diffusion_pytorch_model.a.safetensors"))
        if change == "variants":
            write_all(unet / "diffusion_pytorch_model.b.safetensors", {"a": torch.ones(1)}, {})
        else:
            (unet / "diffusion_pytorch_model.a.safetensors").unlink()
            (unet / "diffusion_pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(ModelError, match=says), open_base(tmp_path / "model"):
        pytest.fail("it was opened")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "a web page, not a model"),
        (b"<html><head>", "a web page, not a model"),
        (b"GGUF\x03\0\0\0", "a GGUF file, whose weights are quantised"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (b"", "is empty"),
        (b"PK\x03\x04", "a torch pickle"),
    ],
)
def test_what_is_no_safetensors_file_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=says), open_base(tmp_path / "m.safetensors"):
        pytest.fail("it was opened")


def test_one_diff_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_diff(small_diff(), tmp_path / "d")
    (tmp_path / "copy").write_bytes((tmp_path / "d").read_bytes())
    base = small_checkpoint(tmp_path / "base")
    for command in (f"apply {{}} {{}} --model {base}", "merge {} {}:-1", "merge {} {}"):
        line = command.format(tmp_path / "d", tmp_path / "copy")
        assert main(f"diff {line} --out {tmp_path / 'out'}".split()) == 2
        assert "is the same diff as" in capsys.readouterr().err


def test_an_entry_that_two_diffs_move_counts_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("a", 0.5), ("b", 0.25)):
        dense = torch.zeros(SHAPES[KEY])
        dense[0, :5] = value
        save_diff(WeightDiff({KEY: SparseOffset.of(dense)}), tmp_path / name)
    base = small_checkpoint(tmp_path / "base")
    line = f"diff apply {tmp_path / 'a'} {tmp_path / 'b'} --model {base} --out {tmp_path / 'out'}"
    assert main(line.split()) == 0
    assert ": 5 entries changed" in capsys.readouterr().out
