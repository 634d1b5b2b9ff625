"""CLIP from what the user has: a transformers folder, or one safetensors file with both towers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import ModelError
from ...models.parameters import fill

PARTS = ("text_model.", "vision_model.", "text_projection.", "visual_projection.", "logit_scale")
HEADS = {1280: 16, 1664: 16}  # of the vision towers of ViT-H and bigG; all others: width / 64
OPENAI = ((768, 12), (1024, 24))  # vision width and layers of OpenAI's, which use quick_gelu


def load_clip_model(path: Path) -> tuple[Any, Any]:
    """Load a CLIPModel and its tokenizer (or the one we ship); raises ModelError."""
    if path.is_file():
        return _from_file(path), _shipped_tokenizer()
    if not (path / "model.safetensors").is_file() or not (path / "config.json").is_file():
        raise ModelError(
            f"{path}: not a CLIP folder this judge reads; it needs config.json and "
            "model.safetensors (pickled weights are refused, for they can run code)"
        )
    from safetensors import SafetensorError
    from transformers import CLIPModel, CLIPTokenizer

    try:
        model = CLIPModel.from_pretrained(str(path), use_safetensors=True, local_files_only=True)
        if (path / "vocab.json").is_file():
            tokenizer = CLIPTokenizer.from_pretrained(str(path), local_files_only=True)
        else:
            tokenizer = _shipped_tokenizer()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as CLIP ({error})") from error
    return model.eval().requires_grad_(False), tokenizer


def _shipped_tokenizer() -> Any:
    from ...models.demo_clip import load_tokenizer

    return load_tokenizer()


def _from_file(path: Path) -> Any:
    """Load one file with transformers' names, its sizes read off the tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel

    try:
        stored = {n: w for n, w in load_file(str(path)).items() if n.startswith(PARTS)}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors ({error})") from error
    if "text_projection.weight" not in stored or "visual_projection.weight" not in stored:
        raise ModelError(
            f"{path}: holds no text and vision tower together; to judge by words CLIP needs both: "
            "give the model.safetensors of a whole CLIP, e.g. of openai/clip-vit-large-patch14"
        )
    stored = {n: w.float() for n, w in stored.items() if not n.endswith("position_ids")}
    try:
        model = CLIPModel(CLIPConfig(**_config(stored)))
        fill(model, stored)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as CLIP ({error})") from error
    return model.eval().requires_grad_(False)


def _config(stored: Mapping[str, Tensor]) -> dict[str, Any]:
    patch = stored["vision_model.embeddings.patch_embedding.weight"]
    places = len(stored["vision_model.embeddings.position_embedding.weight"]) - 1
    words = stored["text_model.embeddings.token_embedding.weight"]
    text, look = _tower(stored, "text_model"), _tower(stored, "vision_model")
    act = (look["hidden_size"], look["num_hidden_layers"]) in OPENAI
    usual = {
        "hidden_act": "quick_gelu" if act else "gelu",
        "projection_dim": len(stored["text_projection.weight"]),
    }
    text |= {
        "vocab_size": len(words),
        "max_position_embeddings": len(stored["text_model.embeddings.position_embedding.weight"]),
        "bos_token_id": len(words) - 2,
        "eos_token_id": len(words) - 1,
    }
    size = patch.shape[-1] * math.isqrt(places)
    look |= {"patch_size": patch.shape[-1], "image_size": size}
    return {
        "text_config": {**text, **usual},
        "vision_config": {**look, **usual},
        "projection_dim": usual["projection_dim"],
    }


def _tower(stored: Mapping[str, Tensor], name: str) -> dict[str, int]:
    inner = f"{name}.encoder.layers."
    first = stored[f"{inner}0.mlp.fc1.weight"]
    layers = {n.removeprefix(inner).split(".")[0] for n in stored if n.startswith(inner)}
    width = first.shape[1]
    vision = name == "vision_model"
    return {
        "hidden_size": width,
        "intermediate_size": first.shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": HEADS.get(width, max(1, width // 64))
        if vision
        else max(1, width // 64),
    }
