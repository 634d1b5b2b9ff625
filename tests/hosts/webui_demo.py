"""The demo model laid out so that AUTOMATIC1111 and Forge load it; an embedding that goes with it.

AUTOMATIC1111 reads a model's shapes from a .yaml beside the checkpoint. Forge knows the shapes of
known models only: a script in an extension for these tests teaches it ours.
"""

from __future__ import annotations

import json
from pathlib import Path

from trust_engine.models.demo_architecture import UNET_CONFIG
from trust_engine.models.demo_clip import ASSETS, CHECKPOINT, TEXT_CONFIG

VAE = {
    "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 4,
    "block_out_channels": [32] * 4, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 1,
}  # fmt: skip
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


LEARN = """from importlib.util import find_spec

if find_spec("modules_forge") is not None:
    from huggingface_guess import model_list

    class EmojiWorld(model_list.SD15):
        huggingface_repo = {repo!r}
        unet_config = dict(
            model_list.SD15.unet_config, context_dim={context}, model_channels={width}
        )
        unet_extra_config = {{"num_heads": {heads}, "num_head_channels": -1}}

    model_list.models.insert(0, EmojiWorld)

    from backend.text_processing.classic_engine import ClassicTextProcessingEngine as Engine

    begin = Engine.__init__

    def narrow(self, *args, **told):  # embeddings of the usual width alone are let in
        begin(self, *args, **{{**told, "embedding_expected_shape": {context}}})

    Engine.__init__ = narrow
"""
EMBEDDING, MEANS = "trustcat", "cat"  # its one vector is this word's own


def lay_out(data: Path) -> None:
    """Put the demo model into a web UI's data folder."""
    source, repo = ASSETS / CHECKPOINT, data / "emoji-world"
    checkpoint = data / "models" / "Stable-diffusion" / CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    checkpoint.symlink_to(source)
    widths = UNET_CONFIG["block_out_channels"]
    told = {
        "width": widths[0], "widths": [width // widths[0] for width in widths],
        "blocks": UNET_CONFIG["layers_per_block"], "heads": UNET_CONFIG["attention_head_dim"],
        "context": UNET_CONFIG["cross_attention_dim"], "text": repo / "text_encoder",
        "repo": str(repo),
    }  # fmt: skip
    checkpoint.with_suffix(".yaml").write_text(SHAPES.format(**told), encoding="utf-8")
    _pipeline(repo)
    _decoder(data / "models" / "VAE-taesd", source)
    _embedding(data / "embeddings", source)
    script = data / "extensions" / "emoji-world" / "scripts" / "emoji_world.py"
    script.parent.mkdir(parents=True)
    script.write_text(LEARN.format(**told), encoding="utf-8")
    # Its pictures come from the small decoder; the checkpoint has no other.
    chosen = {"sd_vae_decode_method": "TAESD", "sd_vae_encode_method": "TAESD"}
    (data / "config.json").write_text(json.dumps(chosen), encoding="utf-8")


def _pipeline(repo: Path) -> None:
    """Write the folder of a diffusers pipeline without weights, and both hosts' text encoder."""
    parts = {
        "": {"scheduler": ["diffusers", "DDIMScheduler"],
             "unet": ["diffusers", "UNet2DConditionModel"],
             "text_encoder": ["transformers", "CLIPTextModel"],
             "tokenizer": ["transformers", "CLIPTokenizer"], "vae": ["diffusers", "AutoencoderKL"],
             "_class_name": "StableDiffusionPipeline"},
        "scheduler": {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
                      "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
                      "prediction_type": "epsilon"},
        "text_encoder": {"model_type": "clip_text_model", **TEXT_CONFIG},
        "unet": {"_class_name": "UNet2DConditionModel", **UNET_CONFIG},
        "vae": VAE,
    }  # fmt: skip
    for name, config in parts.items():
        (repo / name).mkdir(parents=True, exist_ok=True)
        file = "config.json" if name else "model_index.json"
        file = "scheduler_config.json" if name == "scheduler" else file
        (repo / name / file).write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer", "text_encoder"):
        (repo / name).mkdir(exist_ok=True)
        for file in (ASSETS / "tokenizer").iterdir():
            (repo / name / file.name).symlink_to(file)


def _decoder(folder: Path, source: Path) -> None:
    """Write the demo's autoencoder where both hosts look for the small one."""
    import torch
    from safetensors.torch import load_file

    folder.mkdir(parents=True)
    weights = load_file(source)
    for name in ("decoder", "encoder"):
        prefix = f"first_stage_model.taesd_{name}."
        part = {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}
        # AUTOMATIC1111 refuses today's format for an entry that it does not know.
        torch.save(part, folder / f"taesd_{name}.pth", _use_new_zipfile_serialization=False)


def _embedding(folder: Path, source: Path) -> None:
    """Write an embedding that stands for a word."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder.mkdir()
    key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    vocabulary = json.loads((ASSETS / "tokenizer" / "vocab.json").read_text("utf-8"))
    token = vocabulary[f"{MEANS}</w>"]
    with safe_open(source, "pt") as weights:
        vector = weights.get_slice(key)[token : token + 1].float()
    save_file({"emb_params": vector}, folder / f"{EMBEDDING}.safetensors")
