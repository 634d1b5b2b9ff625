"""Modules that compute otherwise for a while: by another `forward`, or twice on the way back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
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

    They are given copies, for some hosts' blocks write to what they are given, and hosts to the
    dictionaries in which they tell their blocks where they are.
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
            given = (a.clone() if isinstance(a, Tensor) else _as_now(a) for a in args)
            with exchanged(module, theta):
                return forward(*given, **_each_as_now(kwargs))

        told = map(_as_now, args)
        return checkpoint(again, *told, use_reentrant=False, **_each_as_now(kwargs))

    return run


def _each_as_now(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _as_now(value) for name, value in kwargs.items()}


def _as_now(value: Any) -> Any:
    """Copy a dictionary; anything else is given on."""
    return dict(value) if isinstance(value, dict) else value
