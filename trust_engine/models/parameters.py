"""A module's weights: filled in from a file, or exchanged for a while without writing to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


@contextlib.contextmanager
def exchanged(module: nn.Module, theta: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a module compute with theta, by parameter name, in place of its own parameters.

    The parameters themselves are taken out and put back, never written: they come back the same
    objects, also after an exception. Gradients flow to theta.
    """
    kept: list[tuple[nn.Module, str, Any]] = []
    try:
        for path, weight in theta.items():
            owner_path, _, name = path.rpartition(".")
            owner = module.get_submodule(owner_path)
            kept.append((owner, name, owner._parameters[name]))
            owner._parameters[name] = weight  # type: ignore[assignment]
        yield
    finally:
        for owner, name, parameter in reversed(kept):
            owner._parameters[name] = parameter


def fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights strictly; raises RuntimeError.

    Old versions of transformers list position_ids, which a module counts out by itself, as weights.
    """
    lacks = module.load_state_dict(dict(weights), strict=False)
    missing = [name for name in lacks.missing_keys if not name.endswith("position_ids")]
    if missing or lacks.unexpected_keys:
        raise RuntimeError(f"missing: {missing[:3]}; unexpected: {list(lacks.unexpected_keys)[:3]}")
