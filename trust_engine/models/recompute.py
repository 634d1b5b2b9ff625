"""Modules that compute otherwise for a while: by another `forward`, or twice on the way back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .parameters import exchanged


@contextlib.contextmanager
def standing_in(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute by `forward`; its own comes back, also one that a host had put there."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


@contextlib.contextmanager
def recomputed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules keep nothing but their input for the way back, and compute once more in it.

    They are given copies, for some hosts' blocks write to what they are given.
    """
    with contextlib.ExitStack() as stack:
        for module in list(modules):
            stack.enter_context(standing_in(module, _twice(module)))
        yield


def _twice(module: nn.Module) -> Callable[..., Any]:
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        theta = dict(module.named_parameters())  # those of now, whatever is there on the way back

        def again(*args: Any, **kwargs: Any) -> Any:
            given = (a.clone() if isinstance(a, Tensor) else a for a in args)
            with exchanged(module, theta):
                return forward(*given, **kwargs)

        return checkpoint(again, *args, use_reentrant=False, **kwargs)

    return run
