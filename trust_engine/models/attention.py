"""One cross-attention layer as pure functions of its weights, and hooks that watch it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import ModelError
from .contract import Denoiser


@dataclass(frozen=True)
class CrossAttention:
    """A layer's weights in float32: q (h, d), k and v (h, c), out (d, h) and its bias (d,)."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    bias: Tensor | None
    heads: int

    def with_weights(self, q: Tensor, k: Tensor, v: Tensor) -> CrossAttention:
        """Exchange the projections, keep the rest."""
        return replace(self, q=q, k=k, v=v)

    def __call__(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from positions x (b, n, d) to tokens (b, 77, c) -> (b, n, d)."""
        return self.attend(x, *self.keys_values(context))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Project tokens (b, 77, c) to keys and values, each (b, heads, 77, h / heads)."""
        return self._split(context, self.k), self._split(context, self.v)

    def attend(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from positions x (b, n, d) to keys and values -> (b, n, d)."""
        q = self._split(x, self.q)
        # Written out: the fused kernels have no second derivative, which CSR needs.
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return F.linear(rearrange(weights @ v, "b h n e -> b n (h e)"), self.out, self.bias)

    def _split(self, rows: Tensor, weight: Tensor) -> Tensor:
        return rearrange(F.linear(rows, weight), "b n (h e) -> b h n e", h=self.heads)


def cross_attention_modules(denoiser: Denoiser) -> dict[str, nn.Module]:
    """Find the cross-attention modules (`attn2`) under their ldm names, in the UNet's order."""
    found = {}
    for name, module in denoiser.module.named_modules():
        if name.endswith(".attn2"):
            key = denoiser.checkpoint_key(f"{name}.to_q.weight")
            found[key.removesuffix(".to_q.weight")] = module
    if not found:
        raise ModelError(
            "the UNet has no cross-attention layers named attn2; "
            "TRUST Unlearn works with SD 1.x, SD 2.x and SDXL models"
        )
    return found


def read_layer(module: Any) -> CrossAttention:
    """Copy a cross-attention module's weights; works on ldm's and diffusers' classes."""

    def copy(weight: Tensor) -> Tensor:
        return weight.detach().to(torch.float32, copy=True)

    q, k, v = (copy(linear.weight) for linear in (module.to_q, module.to_k, module.to_v))
    out = module.to_out[0]
    bias = None if out.bias is None else copy(out.bias)
    return CrossAttention(q, k, v, copy(out.weight), bias, int(module.heads))


@contextlib.contextmanager
def watch_inputs(
    modules: dict[str, nn.Module], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `see(layer, x)` with the positions x (b, n, d) that enter each layer."""

    def hook(layer: str) -> Callable:
        return lambda _module, args, _result: see(layer, args[0].detach())

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
