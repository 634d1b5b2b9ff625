"""Names of text towers and decoders in files, as transformers and diffusers name them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .families import Layout


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file, not read yet: its name there, shape, dtype and the way to read it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


LazyTensors = Mapping[str, LazyTensor]

_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OUTSIDE = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)$")
_IN = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")
_NO_WEIGHTS = ("position_ids", "logit_scale", "attn_mask", "temperature")


def tower_names(stock: LazyTensors, layout: Layout) -> dict[str, LazyTensor]:
    """Rename a text tower's tensors to transformers' names, without `text_model.`."""
    useful = {k: s for k, s in stock.items() if not k.endswith(_NO_WEIGHTS)}
    if layout == "hf":
        return {key.removeprefix("text_model."): stored for key, stored in useful.items()}
    return dict(pair for key, stored in useful.items() for pair in _from_openclip(key, stored))


def _from_openclip(key: str, stored: LazyTensor) -> Iterator[tuple[str, LazyTensor]]:
    if match := _IN.match(key):
        there = f"encoder.layers.{match[1]}.self_attn"
        for i, letter in enumerate("qkv"):
            yield f"{there}.{letter}_proj.{match[2]}", _third(stored, i)
    elif match := _BLOCK.match(key):
        yield f"encoder.layers.{match[1]}.{_LAYER.get(match[2], match[2])}.{match[3]}", stored
    elif key == "text_projection":
        # OpenCLIP multiplies from the right, a linear layer from the left.
        yield "text_projection.weight", _changed(stored, lambda t: t.T.contiguous(), reverse=True)
    else:
        yield _OUTSIDE.get(key, key), stored


def _third(stored: LazyTensor, i: int) -> LazyTensor:
    rows = stored.shape[0] // 3 if stored.shape else 0

    def read() -> Tensor:
        return stored.read()[i * rows : (i + 1) * rows].clone()

    return replace(stored, shape=(rows, *stored.shape[1:]), read=read)


def _changed(
    stored: LazyTensor, how: Callable[[Tensor], Tensor], reverse: bool = False
) -> LazyTensor:
    shape = stored.shape[::-1] if reverse else stored.shape
    return replace(stored, shape=shape, read=lambda: how(stored.read()))


_VAE = {
    "norm_out": "conv_norm_out",
    **{f"mid.block_{i + 1}": f"mid_block.resnets.{i}" for i in range(2)},
    "mid.attn_1": "mid_block.attentions.0",
}
_UP = re.compile(r"decoder\.up\.(\d+)\.(block|upsample)\.")
_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    # diffusers' own names of before 2023, which older folders still have
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


def decoder_names(stock: LazyTensors, levels: int) -> dict[str, LazyTensor]:
    """Rename an AutoencoderKL's decoder from ldm (or older diffusers) names to diffusers'."""
    found: dict[str, LazyTensor] = {}
    for key, stored in stock.items():
        if not key.startswith(("decoder.", "post_quant_conv.")):
            continue
        for here, there in _VAE.items():
            key = key.replace(f"decoder.{here}.", f"decoder.{there}.")
        if match := _UP.match(key):
            block = f"decoder.up_blocks.{levels - 1 - int(match[1])}."
            part = {"block": "resnets.", "upsample": "upsamplers.0."}[match[2]]
            key = block + part + key[match.end() :]
        key = key.replace(".nin_shortcut.", ".conv_shortcut.")
        head, mid, tail = key.partition("mid_block.attentions.0.")
        if mid:
            module, _, name = tail.rpartition(".")
            key = f"{head}{mid}{_ATTENTION.get(module, module)}.{name}"
            if len(stored.shape) == 4:  # ldm has convolutions of one pixel there
                stored = _flat(stored)
        found[key] = stored
    return found


def _flat(stored: LazyTensor) -> LazyTensor:
    shape = stored.shape[:2]
    return replace(stored, shape=shape, read=lambda: stored.read().view(shape))
