"""What AUTOMATIC1111 needs to know of the demo model: a .yaml beside the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trust_engine.models.demo_architecture import UNET_CONFIG

SHAPES = """model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 16
    channels: 4
    conditioning_key: crossattn
    scale_factor: 1.0
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 16
        in_channels: 4
        out_channels: 4
        model_channels: {width}
        attention_resolutions: [1, 2]
        num_res_blocks: {blocks}
        channel_mult: {widths}
        num_heads: {heads}
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: {context}
        use_checkpoint: false
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 128
          in_channels: 3
          out_ch: 3
          ch: 32
          ch_mult: [1, 1, 1, 1]
          num_res_blocks: 1
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: {text}
"""


def write_shapes(folder: Path, checkpoints: Iterable[Path]) -> None:
    """Write the .yaml beside each checkpoint that has none, or one that leads elsewhere."""
    widths: list[int] = UNET_CONFIG["block_out_channels"]
    text = SHAPES.format(
        width=widths[0], widths=[width // widths[0] for width in widths],
        blocks=UNET_CONFIG["layers_per_block"], heads=UNET_CONFIG["attention_head_dim"],
        context=UNET_CONFIG["cross_attention_dim"],
        text=json.dumps((folder / "text_encoder").as_posix()),
    )  # fmt: skip
    for checkpoint in checkpoints:
        beside = checkpoint.with_suffix(".yaml")
        if not beside.is_file() or beside.read_text("utf-8") != text:
            beside.write_text(text, encoding="utf-8")


def see(model: Any, small: Any) -> None:
    """Decode and encode by the small autoencoder; the rest of the host's own stays in place."""
    model.first_stage_model.decode = small.decode
    model.first_stage_model.encode = small.encode
