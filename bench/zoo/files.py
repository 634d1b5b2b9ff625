"""Checkpoints of the zoo under the names that single files and diffusers folders have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.world.pack import shipped, taesd
from trust_engine.demo.judge import ASSETS
from trust_engine.models.unet_keys import LDM_PREFIX, KeyMap, UNetShape

_OPENCLIP = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip

Named = Mapping[str, Tensor]


def ldm_unet(weights: Named, shape: UNetShape) -> dict[str, Tensor]:
    """Name a UNet's weights as single files do."""
    keys = KeyMap(shape)
    return {LDM_PREFIX + keys.to_ldm(name): weight for name, weight in weights.items()}


def ldm_vae() -> dict[str, Tensor]:
    """Name the demo's autoencoder as single files do."""
    return taesd(shipped()["autoencoder"])


def hf_tower(weights: Named, prefix: str) -> dict[str, Tensor]:
    """Name a text tower as transformers did when SD 1.x was made, without its projection."""
    return {
        f"{prefix}text_model.{name.removeprefix('text_model.')}": weight
        for name, weight in weights.items()
        if not name.startswith("text_projection") and not name.endswith("position_ids")
    }


def openclip_tower(weights: Named, layers: int, prefix: str) -> dict[str, Tensor]:
    """Name a text tower as OpenCLIP does: q, k and v in one, the projection from the right."""
    here = {name.removeprefix("text_model."): weight for name, weight in weights.items()}
    found = {
        "token_embedding.weight": here["embeddings.token_embedding.weight"],
        "positional_embedding": here["embeddings.position_embedding.weight"],
        "ln_final.weight": here["final_layer_norm.weight"],
        "ln_final.bias": here["final_layer_norm.bias"],
        "text_projection": here["text_projection.weight"].T,
    }
    for i in range(layers):
        ours, theirs = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for kind in ("weight", "bias"):
            for new, old in _OPENCLIP.items():
                found[f"{ours}.{new}.{kind}"] = here[f"{theirs}.{old}.{kind}"]
            three = [here[f"{theirs}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            found[f"{ours}.attn.in_proj_{kind}"] = torch.cat(three)
    return {prefix + name: weight for name, weight in found.items()}


def write_file(path: Path, tensors: Named) -> Path:
    """Write a single file in float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, path)
    return path


def write_folder(
    folder: Path,
    parts: Mapping[str, Named],
    configs: Mapping[str, Mapping[str, Any]],
    index: Mapping[str, Any],
) -> Path:
    """Write a diffusers folder: each part's weights and config, the tokenizer, and the index."""
    for part, config in configs.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        kind = "scheduler_config" if part == "scheduler" else "config"
        _json(folder / part / f"{kind}.json", config)
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        if part in parts:
            own = {name: weight.half().contiguous() for name, weight in parts[part].items()}
            save_file(own, folder / part / f"{stem}.safetensors", {"format": "pt"})
    shutil.copytree(ASSETS / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    _json(folder / "tokenizer" / "tokenizer_config.json", TOKENIZER)
    _json(folder / "model_index.json", index)
    return folder


def index_of(pipeline: str, part: str, network: str, scheduler: str, text: str) -> dict[str, Any]:
    """Index a folder of a diffusers pipeline: what its network, in `part`, and the rest are."""
    return {
        "_class_name": pipeline,
        part: ["diffusers", network],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", text],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }


TOKENIZER = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": 77,
    "pad_token": "<|endoftext|>",
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
}


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(content), indent=1) + "\n")


def demo_folder() -> tuple[dict[str, Named], dict[str, Mapping[str, Any]]]:
    """Return what folders hold of the demo, weights and configs: text encoder and autoencoder."""
    from diffusers import AutoencoderTiny
    from transformers import CLIPTextConfig

    from trust_engine.models.demo_clip import TEXT_CONFIG

    found = shipped()
    text = {k.removeprefix("text."): w for k, w in found["clip"].items() if k.startswith("text.")}
    config = CLIPTextConfig(**TEXT_CONFIG, architectures=["CLIPTextModelWithProjection"])
    tiny = {"_class_name": "AutoencoderTiny", **AutoencoderTiny().config, "scaling_factor": 1.0}
    plain = {k: v for k, v in tiny.items() if k != "_name_or_path"}
    return {"text_encoder": text, "vae": found["autoencoder"]}, {
        "text_encoder": config.to_dict(),
        "vae": plain,
    }


SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
