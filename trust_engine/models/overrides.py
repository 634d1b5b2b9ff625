"""A denoiser with other weights that leaves the caller's own alone, always.

Attacks train, round and stack weights. They do it on overrides: tensors that stand in for the
module's parameters during a call, and for no moment longer. Stopping an audit anywhere therefore
leaves nothing to restore.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .contract import Conditioning, ModuleDenoiser

Forward = Callable[[Tensor, Tensor, Conditioning], Tensor]


@dataclass(frozen=True)
class Overridden(ModuleDenoiser):
    """A denoiser some of whose weights are replaced while it is called."""

    overrides: Mapping[str, Tensor] = field(default_factory=dict)
    plain: Forward | None = None


class _Call(nn.Module):
    """The UNet and the way to call it as one module, for functional_call."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.module, self.plain = module, forward

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self.plain(x, t, cond)


def override(denoiser: ModuleDenoiser, weights: Mapping[str, Tensor]) -> Overridden:
    """Replace weights, by their parameter names, on top of what is replaced already."""
    plain, before = denoiser.forward, {}
    if isinstance(denoiser, Overridden) and denoiser.plain is not None:
        plain, before = denoiser.plain, dict(denoiser.overrides)
    merged = {**before, **weights}
    call = _Call(denoiser.module, plain)
    named = {f"module.{name}": weight for name, weight in merged.items()}

    def forward(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return torch.func.functional_call(call, named, (x, t, cond), tie_weights=False)

    known = {f.name: getattr(denoiser, f.name) for f in dataclasses.fields(ModuleDenoiser)}
    return Overridden(**{**known, "forward": forward}, overrides=merged, plain=plain)


def weights_of(denoiser: Any) -> dict[str, Tensor]:
    """List the weights in force, by parameter name: overrides before the module's own."""
    weights = {name: p.detach() for name, p in denoiser.module.named_parameters()}
    return {**weights, **getattr(denoiser, "overrides", {})}
