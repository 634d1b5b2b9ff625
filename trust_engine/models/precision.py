"""Weights that stay as they are stored, in 16 or 8 bits, and compute in a wider type."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contract import COMPUTES_IN


def compute_type(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """Choose what to compute in: float32 on a CPU, elsewhere as stored, 8 bits in float16."""
    if device.type == "cpu" or stored.itemsize > 2:
        return torch.float32
    return stored if stored.itemsize == 2 else torch.float16


@contextlib.contextmanager
def float32_default() -> Iterator[None]:
    """Make new tensors float32, whatever default another program has set."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function to run under `float32_default`; of a generator, each resumption alone."""
    if not inspect.isgeneratorfunction(function):
        return float32_default()(function)

    @functools.wraps(function)
    def resumed(*args: Any, **kwargs: Any) -> Iterator[Any]:
        inner = function(*args, **kwargs)
        try:
            while True:
                with float32_default():
                    try:
                        item = next(inner)
                    except StopIteration as stop:
                        return stop.value
                yield item
        finally:
            inner.close()

    return resumed


@contextlib.contextmanager
def quick_products(device: torch.device) -> Iterator[None]:
    """Let a GPU multiply float32 matrices in its tensor cores (TF32), for as long as this lasts.

    Training is float32; without it a GPU would train longer than it records.
    """
    if device.type != "cuda":
        yield
        return
    matmul: Any = torch.backends.cuda.matmul
    quick: bool | str
    try:
        name, quick, before = "allow_tf32", True, matmul.allow_tf32
    except RuntimeError:  # the host has set torch's newer switch: then the older must not be read
        name, quick, before = "fp32_precision", "tf32", matmul.fp32_precision
    setattr(matmul, name, quick)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def widen(module: nn.Module, compute: torch.dtype) -> None:
    """Let every layer of a module of our own widen its weights while it computes, and only then."""
    if {p.dtype for p in module.parameters()} <= {compute}:
        return
    for part in module.modules():
        wide = _WIDE.get(type(part))
        if wide is not None:
            part.__class__ = wide
            part.__dict__[COMPUTES_IN] = compute
    module.__dict__[COMPUTES_IN] = compute


def _as(weight: Tensor | None, x: Tensor) -> Tensor | None:
    return None if weight is None else weight.to(x.dtype)


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), _as(self.bias, input))


class _Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight.to(input.dtype), _as(self.bias, input))


class _GroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _as(self.weight, input), _as(self.bias, input)
        return F.group_norm(input, self.num_groups, weight, bias, self.eps)


class _LayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _as(self.weight, input), _as(self.bias, input)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class _Embedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight, self.padding_idx).to(self.__dict__[COMPUTES_IN])


_WIDE: dict[type, Any] = {
    nn.Linear: _Linear,
    nn.Conv2d: _Conv2d,
    nn.GroupNorm: _GroupNorm,
    nn.LayerNorm: _LayerNorm,
    nn.Embedding: _Embedding,
}
