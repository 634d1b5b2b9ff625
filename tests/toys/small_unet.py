"""A handful of UNet weights in the demo's shapes, as values, as a file, and lent like a host's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from trust_engine.diff.apply import fingerprint_of
from trust_engine.diff.weight_diff import LowRankOffset, Offset, SparseOffset, WeightDiff
from trust_engine.io.safetensors import write_all
from trust_engine.models.contract import ModuleDenoiser, ldm_denoiser, scaled_linear
from trust_engine.models.unet_keys import LDM_PREFIX

torch.set_num_threads(1)
LAYERS = ("input_blocks.1.1", "middle_block.1")
SHAPES = {
    f"{layer}.transformer_blocks.0.attn2.to_{letter}.weight": (64, 96 if letter in "kv" else 64)
    for layer in LAYERS
    for letter in "qkv"
}
KEY = next(iter(SHAPES))
OTHERS = {"input_blocks.0.0.weight": (64, 4, 3, 3), "out.2.weight": (4, 64, 3, 3)}
SPEC = {"concept": {"words": ["gun"], "kind": "single"}, "seed": 7}


def small_weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Draw the weights."""
    chance = torch.Generator().manual_seed(seed)
    shapes = {**SHAPES, **OTHERS}
    return {k: (0.1 * torch.randn(s, generator=chance)).to(dtype) for k, s in shapes.items()}


def small_base(seed: int = 0) -> str:
    """Return the fingerprint of these weights."""
    weights = small_weights(seed)
    return fingerprint_of(SHAPES, lambda key: weights[key])


def small_diff(seed: int = 0, share: float = 0.1, base: int = 0) -> WeightDiff:
    """Move about `share` of the q/k/v entries of the model drawn with seed `base`."""
    chance = torch.Generator().manual_seed(100 + seed)
    offsets = {}
    for key, shape in SHAPES.items():
        kept = torch.rand(shape, generator=chance) < share
        offsets[key] = SparseOffset.of(0.05 * torch.randn(shape, generator=chance) * kept)
    provenance = {
        "spec": json.dumps(SPEC),
        "base": small_base(base),
        "family": "demo",
        "prediction": "eps",
        "engine": "0.1.0",
    }
    return WeightDiff(offsets, provenance)


def low_rank(shape: tuple[int, ...], rank: int, seed: int = 0) -> LowRankOffset:
    """Draw factors for a weight (o, d) or (o, d, kh, kw), whose product is about 0.05 an entry."""
    chance = torch.Generator().manual_seed(200 + seed)
    out, channels, *taps = shape
    up = 0.05 / rank**0.5 * torch.randn(out, rank, *taps, generator=chance)
    return LowRankOffset(up, torch.randn(rank, channels, generator=chance))


def scrubbed_diff(seed: int = 0) -> WeightDiff:
    """Move weights in all forms: a linear layer and a convolution of low rank, entries, both."""
    sparse = small_diff(seed)
    query, both, *_ = SHAPES
    offsets: dict[str, Offset] = {
        **sparse.offsets,
        query: low_rank(SHAPES[query], 3, seed),
        both: replace(low_rank(SHAPES[both], 2, seed), sparse=sparse.offsets[both].entries()),
        "out.2.weight": low_rank(OTHERS["out.2.weight"], 5, seed),
    }
    return replace(sparse, offsets=offsets)


def numbers(offset: Offset) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Spell an offset out, for comparison to the bit: shape and bytes of all that it holds."""
    held: dict[str, Tensor] = {}
    if offset.factors is not None:
        held = dict(zip(("up", "down"), offset.factors, strict=True))
    if offset.sparse is not None:
        held |= {"indices": offset.sparse.indices, "values": offset.sparse.values}
    return {name: (tuple(t.shape), t.contiguous().numpy().tobytes()) for name, t in held.items()}


def small_checkpoint(path: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write the weights as a single-file checkpoint with a part that is no UNet."""
    tensors = {LDM_PREFIX + key: weight for key, weight in small_weights(seed, dtype).items()}
    tensors["first_stage_model.decoder.bias"] = torch.arange(5.0)
    write_all(path, tensors, {"modelspec.title": "small", "sshs_model_hash": "old"})
    return path


def small_denoiser(seed: int = 0, dtype: torch.dtype = torch.float32) -> ModuleDenoiser:
    """Lend the weights as an ldm host does."""
    root = nn.Module()
    for key, weight in small_weights(seed, dtype).items():
        *folders, last = key.split(".")
        here = root
        for folder in folders:
            if folder not in here._modules:
                here.add_module(folder, nn.Module())
            here = here._modules[folder]  # type: ignore[assignment]
        here.register_parameter(last, nn.Parameter(weight, requires_grad=False))
    return ldm_denoiser(root, scaled_linear())


def stock(key: str) -> str:
    """Name a weight as the stock loaders' own mapping does (comfy/lora.py)."""
    return "lora_unet_{}".format(key[: -len(".weight")].replace(".", "_"))


def metadata(path: Path) -> dict[str, str]:
    """Read a file's metadata."""
    with safe_open(str(path), "pt") as file:
        return file.metadata()
