"""Files that are no Stable Diffusion model, or a damaged one: what is wrong is said in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import trust_engine.models.memory
from toys.tiny_families import UNET, folder, install, original, single_file
from trust_engine.errors import ModelError
from trust_engine.models.families import detect
from trust_engine.models.load import load_model


@pytest.fixture(autouse=True)
def _tiny_families(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"cond_stage_model": None}, "the text encoder is missing"),
        ({UNET + "out.2": None}, "UNet lacks ['conv_out.weight'"),
        ({UNET + "out.2.weight": torch.zeros(5, 32, 3, 3)}, "UNet has other shapes: .*out.2.weig"),
        ({UNET + "control.0.weight": torch.zeros(1)}, "control.0.weight: not a parameter"),
        ({UNET + "out.2.bias": torch.tensor([0, 0, 0, torch.nan])}, "NaN or infinite"),
        ({UNET + "input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}, "an inpainting model"),
        ({UNET + "input_blocks.0.0.weight": torch.zeros(32, 8, 3, 3)}, "InstructPix2Pix"),
        ({UNET + "input_blocks.0.0.weight": torch.zeros(48, 4, 3, 3)}, "a UNet of 48 channels"),
        ({UNET + "input_blocks.0.0.weight": torch.tensor(1.0)}, "0 channels; .*UNet lacks weights"),
        ({"edm_mean": torch.zeros(1)}, "EDM schedule"),
        ({UNET + "out.2.scale_weight": torch.ones(1)}, "stored scaled"),
        (
            {"cond_stage_model.transformer.text_model.final_layer_norm": None},
            "text encoder lacks",
        ),
        ({"metadata": {"modelspec.predict_key": "x0"}}, "predicts 'x0'"),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_checkpoint_is_refused(
    extra: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = single_file(tmp_path / "m", original("sd1"), **extra)
    with pytest.raises(ModelError, match=says.replace("[", r"\[")):
        load_model(str(path), "cpu")


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("lora_unet_down_blocks_0_attentions_0.lora_up.weight", "a LoRA, not a model"),
        ("unet.down_blocks.0.attn2.to_q.lora_A.weight", "a LoRA, not a model"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "a Flux model"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "an SD 3 model"),
        ("clip_txt_pooled_mapper.weight", "a Stable Cascade model"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("emb_params", "a textual inversion"),
        ("model_ema.diffusion_modelinput_blocks00weight", "holds averaged weights alone"),
        ("input_blocks.0.0.weight", "a UNet without its text encoder"),
        ("a", "not a Stable Diffusion checkpoint"),
    ],
)
def test_what_is_no_model_is_named(key: str, says: str, tmp_path: Path) -> None:
    save_file({key: torch.zeros(2)}, tmp_path / "m")
    with pytest.raises(ModelError, match=says):
        load_model(str(tmp_path / "m"), "cpu")


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = single_file(tmp_path / "m", original("sd1"))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cut short"):
        load_model(str(path), "cpu")


def test_a_folder_of_another_pipeline_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ModelError, match="a folder of FluxPipeline"):
        load_model(str(tmp_path), "cpu")


def test_too_little_memory_is_told_before_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = single_file(tmp_path / "m", original("sd1"))
    monkeypatch.setattr(trust_engine.models.memory, "free_memory", lambda _: 1_000_000)
    monkeypatch.setattr("trust_engine.models.load.fill", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ModelError, match=r"needs about 0\.0 GB .* free"):
        load_model(str(path), "cpu")


def shapes(inputs: int = 4, context: int = 768, vector: int = 0) -> dict[str, tuple[int, ...]]:
    """Write the shapes that a UNet is told by."""
    found: dict[str, tuple[int, ...]] = {
        "input_blocks.0.0.weight": (320, inputs, 3, 3),
        "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, context),
    }
    return {**found, "label_emb.0.0.weight": (1280, vector)} if vector else found


@pytest.mark.parametrize(
    ("unet", "says"),
    [
        (shapes(9), "m: an inpainting model"),
        (shapes(5, 1024), "a depth-to-image model"),
        (shapes(7, 1024), "an upscaler"),
        (shapes(4, 1280, 2560), "the SDXL refiner"),
        (shapes(4, 1024, 2048), "an SD 2.x unCLIP model"),
        (shapes(4, 512), "a UNet of 320 channels for text of width 512"),
    ],
)
def test_a_relative_of_stable_diffusion_is_named(
    unet: dict[str, tuple[int, ...]], says: str
) -> None:
    with pytest.raises(ModelError, match=f"{says}.*this release reads SD 1.x"):
        detect("m", unet)
    assert detect("m", shapes()).title == "SD 1.x"


def test_a_distilled_unet_is_refused(tmp_path: Path) -> None:
    """Its names are those of its teacher, some of them missing."""
    gone = UNET + "input_blocks.7.1.transformer_blocks.1"
    path = single_file(tmp_path / "m", original("sdxl"), **{gone: None})
    with pytest.raises(ModelError, match="UNet lacks"):
        load_model(str(path), "cpu")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_much_smaller_unet_is_named_by_its_likes(kind: str, tmp_path: Path) -> None:
    """As SSD-1B lacks the middle and more of SDXL."""
    gone = UNET + "input_blocks.8.1.transformer_blocks"
    path = single_file(tmp_path / "m", original("sdxl"), **{gone: None})
    if kind == "folder":
        path = folder(tmp_path / "f", original("sdxl"))
        weights = path / "unet" / "diffusion_pytorch_model.safetensors"
        kept = {k: t for k, t in load_file(weights).items() if "mid_block.attentions" not in k}
        save_file(kept, weights)
    with pytest.raises(ModelError, match=r"more weights of its family: .*SSD-1B, Vega or BK-SDM"):
        load_model(str(path), "cpu")


def test_an_lcm_is_named(tmp_path: Path) -> None:
    extra = {UNET + "time_embed.cond_proj.weight": torch.zeros(32, 256)}
    path = single_file(tmp_path / "m", original("sd1"), **extra)
    with pytest.raises(ModelError, match="an LCM, whose UNet takes the guidance"):
        load_model(str(path), "cpu")


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_a_folder_of_one_variant_is_read(variant: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "f", original("sd1"))
    for weights in path.glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(f".{variant}.safetensors"))
    assert load_model(str(path), "cpu").family == "sd1"


def test_a_folder_without_safetensors_says_so(tmp_path: Path) -> None:
    path = folder(tmp_path / "f", original("sd1"))
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="only safetensors is read"):
        load_model(str(path), "cpu")


def test_a_shard_that_points_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    path = folder(tmp_path / "f", original("sd1"))
    index = path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    single_file(tmp_path / "other.safetensors", original("sd1"))
    index.write_text('{"weight_map": {"conv_in.weight": "../../other.safetensors"}}')
    model = load_model(str(path), "cpu")  # from the file beside the index, as if there were none
    assert model.family == "sd1"
    index.write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        load_model(str(path), "cpu")
