"""Our offsets in the form of patch that Forge's or Forge Neo's merging takes, tried out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from backend.patcher import lora as patcher_lora
from torch import Tensor

from trust_engine.diff.weight_diff import Offset, SparseOffset
from trust_engine.errors import DiffError

SPARSE = "trust_sparse"


class Ours(tuple):
    """A patch of a kind that the host names; the class tells ours from those of others."""

    __slots__ = ()


class Held:
    """An offset that the host's helpers, which cast all tensors in a patch, leave as it is."""

    def __init__(self, offset: Offset) -> None:
        self.offset = offset


def is_ours(value: Any) -> bool:
    """Tell whether a patch is ours."""
    return isinstance(value, Ours) or getattr(value, "name", "") == SPARSE


def register() -> None:
    """Offer our kind of patch to a merging that takes kinds of others; whether it does is tried."""
    known = getattr(patcher_lora, "extra_weight_calculators", None)
    if isinstance(known, dict):
        known[SPARSE] = _merge
    _form.cache_clear()


def unregister() -> None:
    """Undo `register`."""
    known = getattr(patcher_lora, "extra_weight_calculators", None)
    if isinstance(known, dict):
        known.pop(SPARSE, None)
    _form.cache_clear()


def patch(offset: Offset) -> Any:
    """Return a patch that adds an offset, dense in memory only where merging takes no other."""
    return _form()(offset)


def merged(patches: Any, weight: Tensor, key: str) -> Tensor:
    """Let the host merge patches, its own tuples, into a copy of a weight, in float32."""
    exact = weight.detach().to(torch.float32, copy=True)
    made = patcher_lora.merge_lora_to_weight(patches, exact, key, computation_dtype=torch.float32)
    return made


@functools.cache
def _form() -> Callable[[Offset], Any]:
    """Find the form that has an effect here: a name that merging knows need not be used by it."""
    for form in (_calculated, _adapted, _dense):
        if _works(form):
            return form
    raise DiffError("this web UI's way of merging patches is not known to TRUST Unlearn; "
                    "update both")  # fmt: skip


def _works(form: Callable[[Offset], Any]) -> bool:
    """Merge a known offset into a small weight."""
    offset = SparseOffset((2, 3), torch.tensor([1, 4]).int(), torch.tensor([0.5, -1.0]))
    try:
        entry = (2.0, form(offset), 1.0, None, None, None)
        made = merged([entry], torch.ones(2, 3), "trust_trial.weight")
    except Exception:  # whatever an unknown version does with it, the form is not for it
        return False
    return torch.equal(made.detach().cpu(), 1 + 2 * offset.dense())


def _calculated(offset: Offset) -> Any:
    """Forge: a kind of our own, for which it calls what `register` gave it."""
    return Ours((SPARSE, Held(offset)))


def _adapted(offset: Offset) -> Any:
    """Forge Neo: an adapter, which is asked to calculate the weight."""
    base = patcher_lora.weight_adapter.WeightAdapterBase
    return _adapter(base)(offset)


def _dense(offset: Offset) -> Any:
    """Any: all entries, those that stay as zeros."""
    return Ours(("diff", (offset.dense(),)))


@functools.cache
def _adapter(base: type) -> type:
    class Adapter(base):
        """An offset as the adapter of one weight."""

        name = SPARSE

        def __init__(self, offset: Offset) -> None:
            self.held, self.loaded_keys, self.weights = Held(offset), set[str](), list[Tensor]()

        def calculate_weight(
            self, weight: Tensor, key: str, strength: float, *_: Any, **__: Any
        ) -> Tensor:
            """Add strength * offset to a weight in place, as the host's own adapters do."""
            return _merge(weight, strength, self.held)

    return Adapter


def _merge(weight: Tensor, strength: float, held: Held) -> Tensor:
    """Add strength * offset to a weight in place, as Forge's own calculators do."""
    offset = held.offset
    if tuple(weight.shape) != tuple(offset.shape):
        raise DiffError(f"the diff has {list(offset.shape)}, the model {list(weight.shape)}")
    weight += strength * offset.dense(weight.device).to(weight.dtype)
    return weight
