"""Names of UNet tensors: ours against diffusers' own converter."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from toys.tiny import CONFIG, SHAPE
from trust_engine.models.demo_architecture import SHAPE as DEMO_SHAPE
from trust_engine.models.demo_architecture import UNET_CONFIG
from trust_engine.models.unet_keys import (
    LDM_PREFIX,
    KeyMap,
    UNetShape,
    layer_of,
    module_pairs,
    projection_of,
)

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
MODELS = {
    "sd15": (SD15, UNetShape(2, (True, True, True, False))),
    "sdxl": (SDXL, UNetShape(2, (False, True, True))),
    "demo": (UNET_CONFIG, DEMO_SHAPE),
    "tiny": (CONFIG, SHAPE),
}
every_model = pytest.mark.parametrize("name", MODELS)


@cache
def unet(name: str) -> UNet2DConditionModel:
    """Build a UNet without memory for its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(**MODELS[name][0])


@every_model
def test_names_go_there_and_back(name: str) -> None:
    keys, names = KeyMap(MODELS[name][1]), list(unet(name).state_dict())
    ldm = [keys.to_ldm(n) for n in names]
    assert [keys.to_diffusers(key) for key in ldm] == names
    assert len(set(ldm)) == len(names) > 100


@every_model
def test_diffusers_converter_reads_our_names(name: str) -> None:
    """Each ldm name, converted by diffusers, is the name and the very tensor we began with."""
    keys, original = KeyMap(MODELS[name][1]), unet(name).state_dict()
    ldm = {LDM_PREFIX + keys.to_ldm(n): weight for n, weight in original.items()}
    back = convert_ldm_unet_checkpoint(ldm, dict(unet(name).config))
    assert set(back) == set(original)
    assert all(back[n] is original[n] for n in original)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("input_blocks.3.0.op.weight", "down_blocks.0.downsamplers.0.conv.weight"),
        ("middle_block.2.out_layers.3.bias", "mid_block.resnets.1.conv2.bias"),
        ("output_blocks.2.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
        ("output_blocks.5.2.conv.weight", "up_blocks.1.upsamplers.0.conv.weight"),
        ("output_blocks.5.1.proj_in.weight", "up_blocks.1.attentions.2.proj_in.weight"),
    ],
)
def test_known_sd15_names(ours: str, theirs: str) -> None:
    """As checkpoints have them; diffusers' converter is lenient about some."""
    keys = KeyMap(MODELS["sd15"][1])
    assert keys.to_diffusers(ours) == theirs
    assert keys.to_ldm(theirs) == ours


@every_model
def test_module_pairs_have_no_twins(name: str) -> None:
    pairs = list(module_pairs(MODELS[name][1]))
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)


@pytest.mark.parametrize("key", ["input_blocks.99.0.op.weight", "weight", "", "conv_in"])
def test_a_foreign_name_is_refused(key: str) -> None:
    with pytest.raises(KeyError, match="not a parameter"):
        KeyMap(SHAPE).to_diffusers(key)


@pytest.mark.parametrize("letter", "qkv")
def test_projection_and_layer_of_a_key(letter: str) -> None:
    layer = "middle_block.1.transformer_blocks.0.attn2"
    assert projection_of(f"{layer}.to_{letter}.weight") == letter
    assert layer_of(f"{layer}.to_{letter}.weight") == layer


@pytest.mark.parametrize(
    "key", ["a.attn1.to_q.weight", "a.attn2.to_out.0.weight", "a.attn2.to_q.bias"]
)
def test_nothing_but_cross_attention_projections_counts(key: str) -> None:
    assert projection_of(key) is None
