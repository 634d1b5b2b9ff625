"""A product of factors in the form that stock loaders multiply: exactly, but for float16.

A linear layer's up (o, k) and down (k, d) are `lora_up` and `lora_down`, a convolution's with one
tap likewise. With more taps, up (o, k, kh, kw) has the kernel, which loaders expect in `lora_down`.
Their three-factor form takes it, and all of them multiply it alike if its middle is square:

    change[o, d, h, w] = sum_nm lora_up[o, n] lora_mid[n, m, h, w] lora_down[m, d]

down, filled up with zeros, is `lora_down`. Either lora_up[o, (k, h, w)] = up and lora_mid passes
each direction to each of its taps, so that n is of size k kh kw; or lora_mid is up itself, filled
up with zeros, and n is of size o. The smaller one is written.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Parts = dict[str, Tensor]


def stock_parts(up: Tensor, down: Tensor) -> Parts:
    """Return a weight's LoRA tensors by the last part of their names; float16, alpha float32."""
    up, down = _balanced(up, down)
    if up.ndim == 4 and math.prod(up.shape[2:]) > 1:
        return _three(up.half(), down.half())
    taps = up.shape[2:]
    return _named(up.half(), down.half().view(*down.shape, *taps))


def rebuilt(parts: Parts) -> Tensor:
    """Multiply LoRA tensors as hosts do, in float32."""
    up, down = parts["lora_up.weight"].float(), parts["lora_down.weight"].float()
    scale = float(parts["alpha"]) / len(down)
    if "lora_mid.weight" not in parts:
        return scale * (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])
    mid = parts["lora_mid.weight"].float()
    return scale * torch.einsum("nmhw,on,md->odhw", mid, up.flatten(1), down.flatten(1))


def numel(parts: Parts) -> int:
    """Count the numbers that are written."""
    return sum(part.numel() for part in parts.values())


def _balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Move powers of two between the factors until each direction is as large in both."""
    sizes = [part.float().abs().amax(1) for part in (up.transpose(0, 1).flatten(1), down)]
    high, low = (torch.frexp(size)[1] for size in sizes)
    shift = torch.div(high - low, 2, rounding_mode="floor")
    taps = [1] * (up.ndim - 2)
    return torch.ldexp(up, -shift.view(1, -1, *taps)), torch.ldexp(down, shift[:, None])


def _three(up: Tensor, down: Tensor) -> Parts:
    (out, rank, height, width), taps = up.shape, math.prod(up.shape[2:])
    if rank * taps <= max(out, rank):
        wide = rank * taps
        mid = up.new_zeros(rank, height, width, wide, height, width)
        for k in range(rank):
            for y in range(height):
                for x in range(width):
                    mid[k, y, x, k, y, x] = 1
        mid = mid.view(wide, wide, height, width)
        first = up.reshape(out, wide)
    else:
        wide = max(out, rank)
        mid = up.new_zeros(wide, wide, height, width)
        mid[:out, :rank] = up
        first = torch.eye(wide, dtype=up.dtype)[:out]
    last = down.new_zeros(wide, down.shape[1])
    last[:rank] = down
    return {"lora_mid.weight": mid, **_named(first[..., None, None], last[..., None, None])}


def _named(up: Tensor, down: Tensor) -> Parts:
    return {
        "lora_up.weight": up.contiguous(),
        "lora_down.weight": down.contiguous(),
        "alpha": torch.tensor(float(len(down)), dtype=torch.float32),
    }
