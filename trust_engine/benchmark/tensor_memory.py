"""Memory that tensors take, counted exactly as they are made and freed, on any device."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Count the bytes of tensors made inside and not freed yet; `peak` is the most there were.

    On the meta device this tells what a device would need, without having one: its kernels' own
    workspace aside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._open = False

    def __enter__(self) -> LiveTensors:
        self._open = True
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._open = False
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call through; what comes out on a storage that nothing came in on is new."""
        for storage in _storages((args, kwargs)):
            self._seen.add(storage)
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            if storage not in self._seen:
                self._seen.add(storage)
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._free, storage.nbytes())
        return found

    def _free(self, size: int) -> None:
        if self._open:
            self.bytes -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [t.untyped_storage() for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


class _Fused(torch.autograd.Function):
    """Attention that keeps what went in and came out for the way back, and no weights."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@contextlib.contextmanager
def fused_attention_assumed() -> Iterator[None]:
    """Let attention on the meta device take no more than its result, as fused kernels do."""
    own = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: _Fused.apply(q, k, v)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own
