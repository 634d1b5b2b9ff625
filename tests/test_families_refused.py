"""Files that are no Stable Diffusion model, or a damaged one: what is wrong is said in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import UNET, install, original, single_file

import trust_engine.memory
from trust_engine.errors import ModelError
from trust_engine.model import load_model


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
        ("input_blocks.0.0.weight", "a UNet without its text encoder"),
        ("a", "not a Stable Diffusion checkpoint"),
    ],
)
def test_what_is_no_model_is_named(key: str, says: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

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
    monkeypatch.setattr(trust_engine.memory, "free_memory", lambda _: 1_000_000)
    monkeypatch.setattr("trust_engine.model.fill", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ModelError, match=r"needs about 0\.0 GB .* free"):
        load_model(str(path), "cpu")
