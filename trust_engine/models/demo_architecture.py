"""Shapes of the demo model and of its siblings, as diffusers configurations."""

from __future__ import annotations

from typing import Any

from .unet_keys import UNetShape

SHAPE = UNetShape(blocks=1, attention=(True, True, False))
UNET_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128, 192),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 96,
    "attention_head_dim": 4,  # diffusers' name for the number of heads in SD 1.x
    "norm_num_groups": 32,
}

V_CONFIG: dict[str, Any] = {
    **UNET_CONFIG,
    "cross_attention_dim": 128,
    "use_linear_projection": True,
}
"""As SD 2.x differs from SD 1.x: wider text and linear projections."""

XL_SHAPE = UNetShape(blocks=1, attention=(False, True, True))
XL_POOLED = 64
XL_CONFIG: dict[str, Any] = {
    **UNET_CONFIG,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 96 + XL_POOLED,
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": XL_POOLED + 6 * 256,
}
"""As SDXL differs: no attention at the top, more at the bottom, two towers, and a vector."""
