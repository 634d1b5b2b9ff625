"""Modules that compute otherwise for a while: by another `forward`, or twice on the way back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
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
def recomputed(modules: Iterable[nn.Module], in_place: bool = False) -> Iterator[None]:
    """Let modules keep nothing but their input for the way back, and compute once more in it.

    They are given copies, for some hosts' blocks write to what they are given, and hosts to the
    dictionaries in which they tell their blocks where they are. in_place: blocks may also write to
    what they hold, and their weights be inference tensors; gradients then reach leaves alone, by
    `backward`, and what is saved of a block is copied while its turn lasts.
    """
    with contextlib.ExitStack() as stack:
        for module in list(modules):
            again = _twice_in_place(module) if in_place else _twice(module)
            stack.enter_context(standing_in(module, again))
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


def _twice_in_place(module: nn.Module) -> Callable[..., Any]:
    """Compute without anything saved, and on the way back a second time with copies saved.

    Checkpointing that is not reentrant saves what the second time computes as it is, and a block
    that writes to it gets wrong gradients without a word.
    """
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        theta = dict(module.named_parameters())
        told = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
        other = {name: _as_now(value) for name, value in kwargs.items() if name not in told}

        def again(root: Tensor, *values: Any) -> Any:
            given = [v.clone() if isinstance(v, Tensor) else _as_now(v) for v in values]
            named = dict(zip(told, given[len(args) :], strict=True))
            own = plain(theta) if torch.is_grad_enabled() else theta
            with exchanged(module, own), saved_tensors_hooks(_copied, lambda tensor: tensor):
                found = forward(*given[: len(args)], **named, **_each_as_now(other))
            if not torch.is_grad_enabled():
                return found
            if isinstance(found, Tensor):
                return found + root
            return tuple(out + root if isinstance(out, Tensor) else out for out in found)

        # Something given must want a gradient, whether or not leaves inside do.
        root = torch.zeros((), requires_grad=True)
        return checkpoint(again, root, *map(_as_now, args), *told.values(), use_reentrant=True)

    return run


def plain(theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy inference tensors, which hosts hold: they cannot be saved for the way back."""
    return {
        name: nn.Parameter(weight.detach().clone(), False) if weight.is_inference() else weight
        for name, weight in theta.items()
    }


def _copied(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, nn.Parameter) else tensor.clone()


def _each_as_now(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _as_now(value) for name, value in kwargs.items()}


def _as_now(value: Any) -> Any:
    """Copy a dictionary; anything else is given on."""
    return dict(value) if isinstance(value, dict) else value
