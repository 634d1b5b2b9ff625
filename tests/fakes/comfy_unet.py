"""A UNet in small, with cross-attention where ComfyUI's has it, called and patched likewise."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM, CONTEXT, TOKENS, HEADS = 8, 6, 12, 2


class Linear(nn.Linear):
    """A layer of the host's own, which computes in the type of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Attention(nn.Module):
    """Cross-attention under the host's names."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.heads = HEADS
        self.to_q = Linear(DIM, DIM, bias=False, dtype=dtype)
        self.to_k, self.to_v = (Linear(CONTEXT, DIM, bias=False, dtype=dtype) for _ in "kv")
        self.to_out = nn.Sequential(Linear(DIM, DIM, dtype=dtype), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor, value: Tensor | None = None) -> Tensor:
        value = context if value is None else value
        q, k, v = (
            layer(a).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for a, layer in ((x, self.to_q), (context, self.to_k), (value, self.to_v))
        )
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A transformer block that lets the host's attn2_patch look on."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.attn2 = Attention(dtype)

    def forward(self, x: Tensor, context: Tensor, place: tuple, options: dict) -> Tensor:
        n, value = F.layer_norm(x, x.shape[-1:]), None
        extra = {"block": place, "block_index": 0}
        for patch in options.get("patches", {}).get("attn2_patch", []):
            value = context if value is None else value
            n, context, value = patch(n, context, value, extra)
        return x + self.attn2(n, context=context, value=value)


class FakeUNet(nn.Module):
    """Three cross-attention layers in the places they have in the host's UNet."""

    begin: ClassVar[Any] = None  # told of each pass

    def __init__(
        self, in_channels: int = 4, dtype: Any = None, device: Any = None, operations: Any = None
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.time_embed = Linear(1, DIM, dtype=dtype)
        self.input_blocks = nn.ModuleList([nn.ModuleList([Linear(4, DIM, dtype=dtype)])])
        for stage in ("input", "middle", "output"):
            holder = nn.Module()
            holder.transformer_blocks = nn.ModuleList([Block(dtype)])
            place = nn.ModuleList([nn.Identity(), holder])
            if stage == "input":
                self.input_blocks.append(place)
            elif stage == "middle":
                self.middle_block = place
            else:
                self.output_blocks = nn.ModuleList([place])
        self.out = Linear(DIM, 4, dtype=dtype)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None,
        control: Any = None, transformer_options: dict | None = None,
    ) -> Tensor:  # fmt: skip
        if type(self).begin is not None:
            type(self).begin(len(x))
        options = transformer_options or {}
        b, _, h, w = x.shape

        state = self.input_blocks[0][0](x.flatten(2).transpose(1, 2))
        state = state + self.time_embed(timesteps.to(x.dtype)[:, None] / 1000)[:, None]
        if y is not None:
            state = state + y.mean(1).view(b, 1, 1)
        for place, block in (
            (("input", 1), self.input_blocks[1]),
            (("middle", 0), self.middle_block),
            (("output", 0), self.output_blocks[0]),
        ):
            state = block[1].transformer_blocks[0](state, context, place, options)
        return self.out(state).transpose(1, 2).reshape(b, 4, h, w)
