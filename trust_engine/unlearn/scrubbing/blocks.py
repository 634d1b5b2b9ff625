"""The layers that work on the picture, in blocks, in the order in which they work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ...models.contract import Denoiser

TEXT_SIDE = (".attn2.to_k.weight", ".attn2.to_v.weight")
TOGETHER = (".attn1.to_k.weight", ".attn1.to_v.weight")
"""Layers that are given what attn1.to_q is."""
NOT_PICTURES = ("time_embed.", "label_emb.", ".emb_layers.")  # fed by the time step and the size


@dataclass(frozen=True)
class Block:
    """A resnet, a transformer or a sampling layer.

    name: by its ldm name, input_blocks.4.1; path: of the module that holds all its layers; layers:
    by the ldm name of their weight; alike: layers that are given the very input of another one;
    used_last: the number of the last block that reads this one's output besides the next, if any.
    """

    name: str
    path: str
    layers: Mapping[str, nn.Module]
    alike: Mapping[str, str]
    used_last: int = -1


def picture_layers(denoiser: Denoiser) -> dict[str, nn.Module]:
    """List the layers that work on the picture, by the ldm name of their weight.

    Not those on the text side, on the time step, and the first, whose input is the picture itself.
    """
    return {key: layer for key, (_, layer) in _named_layers(denoiser).items()}


def weights_by_block(denoiser: Denoiser) -> dict[str, dict[str, Tensor]]:
    """List the layers' weights block by block without a pass, in no order that means anything."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, (_, layer) in _named_layers(denoiser).items():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        found.setdefault(_block_of(key), {})[key] = weight
    return found


def _named_layers(denoiser: Denoiser) -> dict[str, tuple[str, nn.Module]]:
    found: dict[str, tuple[str, nn.Module]] = {}
    for name, module in denoiser.module.named_modules():
        # By what it holds: Forge's layers are of classes of its own.
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim not in (2, 4):
            continue
        key = denoiser.checkpoint_key(f"{name}.weight")
        beside = key.endswith(TEXT_SIDE) or any(part in f".{key}" for part in NOT_PICTURES)
        if not beside and not key.startswith("input_blocks.0."):
            found[key] = name, module
    return found


@torch.no_grad()
def blocks_of(denoiser: Denoiser, once: Callable[[], object]) -> list[Block]:
    """Put the layers into blocks as they are called; `once` makes one pass of a single sample.

    Raises ModelError for a network whose layers are not grouped in modules of their own.
    """
    named = _named_layers(denoiser)
    order: list[str] = []
    alike: dict[str, str] = {}
    last: list[tuple[str, object]] = []

    def see(key: str, x: object) -> None:
        order.append(key)
        if last and last[0][1] is x:  # to_q, to_k and to_v of one attention
            alike[key] = last[0][0]
        else:
            last[:] = [(key, x)]

    with contextlib.ExitStack() as stack:
        for key, (_, layer) in named.items():
            hook = layer.register_forward_pre_hook(lambda _m, args, key=key: see(key, args[0]))
            stack.callback(hook.remove)
        once()
    if not order:
        raise ModelError("none of this model's layers can be watched; it cannot be scrubbed")
    groups: dict[str, list[str]] = {}
    for key in dict.fromkeys(order):
        groups.setdefault(_block_of(key), []).append(key)
    blocks = [
        Block(
            name,
            _holder([named[key][0] for key in keys], set(named[key][0] for key in named)),
            {key: named[key][1] for key in keys},
            {key: alike[key] for key in keys if key in alike},
        )
        for name, keys in groups.items()
    ]
    return _with_skips(blocks)


def innermost(module: nn.Module, blocks: Sequence[Block]) -> list[str]:
    """List the paths of the blocks, a transformer's as its layers', each of which holds attn2."""
    found: list[str] = []
    for block in blocks:
        owner = module.get_submodule(block.path)
        own = [name for name, part in owner.named_modules() if hasattr(part, "attn2")]
        found += [".".join(filter(None, (block.path, name))) for name in own] or [block.path]
    return found


def _block_of(key: str) -> str:
    """Name the block that a layer belongs to: input_blocks.4.1, middle_block.0, out."""
    parts = key.split(".")
    return ".".join(parts[: 3 if parts[0].endswith("_blocks") else 2])


def _holder(names: Sequence[str], every: set[str]) -> str:
    """Return the path of the innermost module that holds these layers and no others."""
    parts = [name.split(".") for name in names]
    same = 0
    while all(len(p) > same and p[same] == parts[0][same] for p in parts):
        same += 1
    path = ".".join(parts[0][:same])
    others = {name for name in every if name == path or name.startswith(f"{path}.")} - set(names)
    if not path or others:
        raise ModelError(
            f"the layers {names[0]} to {names[-1]} are in no module of their own; this model "
            "cannot be scrubbed block by block"
        )
    return path


def _with_skips(blocks: Sequence[Block]) -> list[Block]:
    """Note by which block a UNet's skip connection is read: input_blocks.N by output_blocks.M-N.

    Of a network without output_blocks nobody knows who reads what: everything is kept to the end.
    """
    out = [_number(b.name) for b in blocks if b.name.startswith("output_blocks.")]
    if not out:
        return [replace(block, used_last=len(blocks)) for block in blocks]
    readers: dict[int, int] = {}
    for place, block in enumerate(blocks):
        if block.name.startswith("output_blocks."):
            readers.setdefault(max(out) - _number(block.name), place)
    ends: dict[int, int] = {}
    for place, block in enumerate(blocks):
        if block.name.startswith("input_blocks."):
            ends[_number(block.name)] = place
    used = {place: readers.get(number, len(blocks)) for number, place in ends.items()}
    return [replace(block, used_last=used.get(place, -1)) for place, block in enumerate(blocks)]


def _number(name: str) -> int:
    return int(name.split(".")[1])
