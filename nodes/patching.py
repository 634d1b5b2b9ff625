"""A diff put on a clone of the host's MODEL. The clone shares the module, which stays as it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..trust_engine.diff import Offset, WeightDiff
from ..trust_engine.diff.apply import STRONGEST, check_base, check_family
from ..trust_engine.diff.weight_diff import product
from ..trust_engine.errors import DiffError
from ..trust_engine.settings import in_range
from .stored_weight import PREFIX, entry_of

try:  # since 2025; older hosts know dense patches only
    from comfy.weight_adapter import WeightAdapterBase as _Adapter
except ImportError:
    _Adapter = None

log = logging.getLogger(__name__)


class DensePatch(tuple):
    """A plain ("diff", (tensor,)) patch that we can tell from others' patches."""

    source: WeightDiff | None = None


if _Adapter is not None:

    class SparsePatch(_Adapter):
        """A patch that adds some entries of a weight, without a dense tensor in memory.

        The host may rebuild it from (loaded_keys, weights) whenever a layer is cast, with copies
        that are still on their way to the device: nothing of them may be read before
        calculate_weight. weights: flat indices (n,) and their values (n,).
        """

        name = "trust"
        source: WeightDiff | None = None

        def __init__(self, loaded_keys: set[str], weights: Sequence[Tensor]) -> None:
            self.loaded_keys = loaded_keys
            self.weights = weights

        def calculate_weight(
            self,
            weight: Tensor,
            key: str,
            strength: float,
            strength_model: float,
            offset: Any,
            function: Any,
            intermediate_dtype: torch.dtype = torch.float32,
            original_weight: Any = None,
        ) -> Tensor:
            """Add strength * values in place, as the host's own patches do, and return it.

            The sum is taken in float32 at least, and rounded once, to the type of the weight.
            """
            wide = max(weight.dtype, torch.float32, key=lambda dtype: dtype.itemsize)
            parts = [part.to(weight.device) for part in self.weights]
            change = self.change(weight, strength, parts, wide)
            weight.copy_(function(change.view(weight.shape)) + weight)
            return weight

        def change(
            self, weight: Tensor, strength: float, parts: Sequence[Tensor], wide: torch.dtype
        ) -> Tensor:
            """Write out what is added to a weight; parts: `weights`, where the weight is."""
            indices, values = parts
            change = torch.zeros(weight.numel(), dtype=wide, device=weight.device)
            change[indices.long()] = strength * values.to(wide)
            return change

    class LowRankPatch(SparsePatch):
        """A patch that adds a product of factors, which are multiplied when a weight is made.

        weights: up (o, k) or (o, k, kh, kw) and down (k, d); and, of entries on top, flat indices
        (n,) and values (n,).
        """

        def change(
            self, weight: Tensor, strength: float, parts: Sequence[Tensor], wide: torch.dtype
        ) -> Tensor:
            """Multiply the factors, and add the entries; parts: `weights`, where the weight is."""
            up, down, *entries = parts
            change = strength * product(up.to(wide), down.to(wide))
            if entries:
                change += super().change(weight, strength, entries, wide).view_as(change)
            return change


def is_ours(patch: Sequence[Any]) -> bool:
    """Tell whether an entry of the host's patch list is a diff that our nodes applied."""
    value = patch[1] if len(patch) > 1 else None
    return isinstance(value, DensePatch) or type(value).__name__ in ("SparsePatch", "LowRankPatch")


def patches_of(diff: WeightDiff) -> dict[str, Any]:
    """Turn a diff into the host's patches, by full name; each knows the diff as its source."""
    patches: dict[str, Any] = {}
    for key, offset in diff.offsets.items():
        if not offset.is_zero:
            patches[PREFIX + key] = patch = _patch(offset)
            patch.source = diff
    return patches


def _patch(offset: Offset) -> Any:
    if _Adapter is None:
        return DensePatch(("diff", (offset.dense(),)))
    entries = [offset.sparse.indices, offset.sparse.values] if offset.sparse is not None else []
    if offset.factors is None:
        return SparsePatch(set(), entries)
    return LowRankPatch(set(), [*offset.factors, *entries])


def patched(model: Any, diff: WeightDiff, strength: float = 1.0) -> Any:
    """Return a clone of a MODEL under strength * diff; raises DiffError if a weight is missing."""
    in_range("strength", strength, -STRONGEST, STRONGEST)
    _check_shapes(model, diff)
    patches = patches_of(diff)
    clone = model.clone()
    # The host leaves unknown names out without a word; what it took is what it returns.
    taken = set(clone.add_patches(patches, strength))
    if missing := sorted(set(patches) - taken):
        raise DiffError(
            f"the model has no {missing[0].removeprefix(PREFIX)} ({len(missing)} weights of the "
            "diff are missing); choose a model of the family that the diff was made for"
        )
    return clone


def _check_shapes(model: Any, diff: WeightDiff) -> None:
    """Raise DiffError where a weight has another shape: the patches carry none to check later."""
    for key, offset in diff.offsets.items():
        entry = entry_of(model, PREFIX + key)
        if entry is not None and tuple(entry.stored.shape) != tuple(offset.shape):
            raise DiffError(
                f"{key}: the diff has {tuple(offset.shape)}, the model "
                f"{tuple(entry.stored.shape)}; choose a model of the family that the diff "
                "was made for"
            )


def check_fits(
    diff: WeightDiff,
    shapes: Mapping[str, tuple[int, ...]],
    prints: Sequence[str],
    prediction: str,
    name: str = "the diff",
    strict: bool = False,
) -> str | None:
    """Raise DiffError unless the model has the weights; return a warning for another base.

    prints: the model's fingerprints, with and without diffs that were applied before.
    """
    check_family(diff, shapes, name)
    expected = diff.provenance.get("base")
    mine = expected if expected in prints else prints[0]
    warning = check_base(diff, str(mine), name, strict, prediction)
    if warning:
        log.warning(warning)
    return warning
