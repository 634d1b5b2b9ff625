"""Tiny random models with the exact structure of SD 1.x, SD 2.x and SDXL, and files of them.

The names in the files are written here from the public layout, not by the engine's own tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trust_engine.models import families
from trust_engine.models.families import END, KL, MODELS, ModelFamily

torch.set_num_threads(1)
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TINY_KL = {**KL, "block_out_channels": (32, 32, 32, 32)}


def _text(width: int, layers: int, activation: str, pad: int) -> dict[str, Any]:
    return {
        "vocab_size": 49_408, "hidden_size": width, "intermediate_size": 2 * width,
        "projection_dim": width, "num_hidden_layers": layers, "num_attention_heads": 2,
        "max_position_embeddings": 77, "hidden_act": activation, "bos_token_id": 49_406,
        "eos_token_id": END, "pad_token_id": pad,
    }  # fmt: skip


# What each tiny UNet and its towers have in place of the widths of the real ones.
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 24},
    "sd2": {
        "block_out_channels": (32, 64, 64, 64),
        "cross_attention_dim": 40,
        "attention_head_dim": (1, 2, 2, 2),
    },
    "sdxl": {
        "block_out_channels": (32, 64, 64),
        "cross_attention_dim": 24 + 16,
        "attention_head_dim": (1, 2, 2),
        "transformer_layers_per_block": (1, 2, 3),
        "projection_class_embeddings_input_dim": 16 + 6 * 256,
    },
}
TEXTS = {
    "sd1": (_text(24, 3, "quick_gelu", END),),
    "sd2": (_text(40, 3, "gelu", 0),),
    "sdxl": (_text(24, 3, "quick_gelu", END), _text(16, 3, "gelu", 0)),
}
NAMES = tuple(UNETS)


def tiny_family(name: str) -> ModelFamily:
    """Shrink a family, leaving all that is not a width as it is."""
    real = next(family for family in MODELS if family.unet.name == name)
    config = {**real.unet.config, **UNETS[name]}
    texts = [dict(text) for text in TEXTS[name]]
    if name == "sd2":
        texts[0]["num_hidden_layers"] -= 1  # the top layer is in files, and not read
    towers = tuple(replace(t, config=c) for t, c in zip(real.towers, texts, strict=True))
    unet = replace(real.unet, context=config["cross_attention_dim"], config=config)
    small = ((8, 8), (8, 8))
    return replace(real, unet=unet, towers=towers, decoder=TINY_KL, sizes=small)


def install(monkeypatch: Any) -> None:
    """Let the engine know the tiny families beside the real ones."""
    monkeypatch.setattr(families, "MODELS", (*MODELS, *map(tiny_family, NAMES)))


@dataclass(frozen=True)
class Original:
    """A model as diffusers and transformers build it, all layers included."""

    name: str
    unet: nn.Module
    texts: tuple[nn.Module, ...]
    vae: nn.Module

    def half(self) -> Original:
        """Round all weights to float16 and compute in float32."""
        import copy

        copied = copy.deepcopy(self)
        for module in (copied.unet, *copied.texts, copied.vae):
            module.half().float()
        return copied


@cache
def original(name: str) -> Original:
    """Draw a model."""
    with torch.random.fork_rng():
        torch.manual_seed(NAMES.index(name))
        model = build(name, tiny_family(name).unet.config, TEXTS[name], TINY_KL)
        for module in (model.unet, *model.texts, model.vae):
            for weight in module.parameters():  # no weight is left at one or zero
                weight.add_(0.02 * torch.randn_like(weight))
    return model


def build(
    name: str, unet: Mapping[str, Any], texts: Sequence[Mapping[str, Any]], vae: Mapping[str, Any]
) -> Original:
    """Build a model by its configurations."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    towers = tuple(kind(CLIPTextConfig(**c)) for kind, c in zip(kinds, texts, strict=False))
    model = Original(name, UNet2DConditionModel(**unet), towers, AutoencoderKL(**vae))
    for module in (model.unet, *towers, model.vae):
        module.eval().requires_grad_(False)
    return model


def single_file(
    path: Path, model: Original, dtype: torch.dtype = torch.float32, **extra: Any
) -> Path:
    """Write a model as a single-file checkpoint; extra: tensors, and `metadata`."""
    metadata = extra.pop("metadata", None)
    tensors = {key: tensor.to(dtype).contiguous() for key, tensor in ldm_tensors(model).items()}
    for key, tensor in extra.items():
        if tensor is None:
            tensors = {k: t for k, t in tensors.items() if not k.startswith(key)}
        else:
            tensors[key] = tensor
    save_file(tensors, path, metadata)
    return path


def ldm_tensors(model: Original) -> dict[str, Tensor]:
    """List a model's tensors under the names of single files."""
    found = {UNET + k: t for k, t in ldm_unet(model).items()}
    found |= {VAE + k: t for k, t in ldm_vae(model.vae.state_dict()).items()}
    if model.name == "sd1":
        found |= hf_text(model.texts[0], "cond_stage_model.transformer.")
        ids = torch.arange(77).view(1, 77)
        found["cond_stage_model.transformer.text_model.embeddings.position_ids"] = ids
    if model.name == "sd2":
        found |= openclip(model.texts[0], "cond_stage_model.model.")
        width = model.texts[0].config.hidden_size
        found["cond_stage_model.model.text_projection"] = torch.ones(width, width)
        found["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    if model.name == "sdxl":
        found |= hf_text(model.texts[0], "conditioner.embedders.0.transformer.")
        found |= openclip(model.texts[1], "conditioner.embedders.1.model.")
    return found


def ldm_unet(model: Original) -> dict[str, Tensor]:
    """Rename a UNet's tensors as CompVis and Stability name them."""
    modules = {
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }  # fmt: skip
    plain = {"sd1": (3, 0), "sd2": (3, 0), "sdxl": (0, 2)}[model.name]  # levels without attention
    for i in range(3 if model.name == "sdxl" else 4):
        for j in range(2):
            modules[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{3 * i + j + 1}.0"
            modules[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{3 * i + j + 1}.1"
        for j in range(3):
            modules[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{3 * i + j}.0"
            modules[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{3 * i + j}.1"
        modules[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{3 * i + 3}.0.op"
        last = 1 if i == plain[1] else 2
        modules[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{3 * i + 2}.{last}.conv"
    resnet = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
        "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }  # fmt: skip
    found = {}
    for key, tensor in model.unet.state_dict().items():
        module = next(m for m in modules if key.startswith(f"{m}."))
        rest = key[len(module) + 1 :].split(".")
        if ".resnets." in key:
            rest[0] = resnet[rest[0]]
        found[".".join([modules[module], *rest])] = tensor
    return found


def ldm_vae(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an autoencoder's tensors as CompVis names them."""
    found = {}
    for key, tensor in weights.items():
        name = key.replace("mid_block.resnets.0", "mid.block_1")
        name = name.replace("mid_block.resnets.1", "mid.block_2")
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        for i in range(4):
            name = name.replace(f"down_blocks.{i}.resnets", f"down.{i}.block")
            name = name.replace(f"down_blocks.{i}.downsamplers.0", f"down.{i}.downsample")
            name = name.replace(f"up_blocks.{i}.resnets", f"up.{3 - i}.block")
            name = name.replace(f"up_blocks.{i}.upsamplers.0", f"up.{3 - i}.upsample")
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            name = name.replace("to_out.0", "proj_out").replace("group_norm", "norm")
            for letter in "qkv":
                name = name.replace(f"to_{letter}.", f"{letter}.")
            if tensor.dim() == 2:
                tensor = tensor[:, :, None, None]
        found[name] = tensor
    return found


def hf_text(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Name a text tower as transformers did when the checkpoints were made."""
    weights = module.state_dict()
    return {f"{prefix}text_model.{k.removeprefix('text_model.')}": t for k, t in weights.items()}


def openclip(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Name a text tower as OpenCLIP does, q, k and v in one."""
    weights = {k.removeprefix("text_model."): t for k, t in module.state_dict().items()}
    found = {
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "ln_final.weight": weights["final_layer_norm.weight"],
        "ln_final.bias": weights["final_layer_norm.bias"],
    }
    if "text_projection.weight" in weights:
        found["text_projection"] = weights["text_projection.weight"].T
    parts = {
        "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj",
    }  # fmt: skip
    for i in range(module.config.num_hidden_layers):
        here, there = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for kind in ("weight", "bias"):
            for new, old in parts.items():
                found[f"{here}.{new}.{kind}"] = weights[f"{there}.{old}.{kind}"]
            qkv = [weights[f"{there}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            found[f"{here}.attn.in_proj_{kind}"] = torch.cat(qkv)
    return {prefix + key: tensor for key, tensor in found.items()}


def folder(path: Path, model: Original, prediction: str = "epsilon") -> Path:
    """Write a model as a diffusers folder."""
    parts: dict[str, nn.Module] = {"unet": model.unet, "vae": model.vae}
    parts |= dict(zip(("text_encoder", "text_encoder_2"), model.texts, strict=False))
    for part, module in parts.items():
        (path / part).mkdir(parents=True)
        stem = "model" if "text" in part else "diffusion_pytorch_model"
        weights = {k: t.contiguous() for k, t in module.state_dict().items()}
        if "text" in part:
            weights = hf_text(module, "")
            if model.name == "sd2":  # as published: without the layer that is not read
                weights = {k: t for k, t in weights.items() if "layers.2." not in k}
            for key in [k for k in weights if k.endswith("text_projection.weight")]:
                weights["text_projection.weight"] = weights.pop(key)
        save_file(weights, path / part / f"{stem}.safetensors")
    (path / "scheduler").mkdir()
    config = {"prediction_type": prediction, "beta_start": 0.00085, "beta_end": 0.012}
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return path
