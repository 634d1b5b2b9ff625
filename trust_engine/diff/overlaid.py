"""A denoiser under offsets that are not written: a layer's weight is made while it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..models.contract import Conditioning, Denoiser, NoiseSchedule, compute_dtype, device_of
from .weight_diff import Offset


class Overlaid:
    """A denoiser with offsets added, by ldm name, at the memory of one more layer.

    The network's own parameters are exchanged, never written, and nothing hangs on it between two
    calls.
    """

    def __init__(self, denoiser: Denoiser, offsets: Mapping[str, Offset]) -> None:
        self.denoiser, self.offsets = denoiser, offsets
        self._layers: dict[nn.Module, dict[str, Offset]] = {}
        for key, offset in offsets.items():
            owner, _, name = denoiser.parameter_name(key).rpartition(".")
            self._layers.setdefault(self.module.get_submodule(owner), {})[name] = offset

    @property
    def module(self) -> nn.Module:
        """Return the UNet itself."""
        return self.denoiser.module

    @property
    def schedule(self) -> NoiseSchedule:
        """Return the schedule it was trained with."""
        return self.denoiser.schedule

    def checkpoint_key(self, name: str) -> str:
        """Translate a parameter name of `module` to its ldm name, without prefix."""
        return self.denoiser.checkpoint_key(name)

    def parameter_name(self, key: str) -> str:
        """Translate an ldm name back to the parameter's name in `module`."""
        return self.denoiser.parameter_name(key)

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict eps or v: x (b, 4, h, w), t (b,) in 0..999 -> (b, 4, h, w)."""
        with self.overlaid():
            return self.denoiser(x, t, cond)

    @contextlib.contextmanager
    def overlaid(self) -> Iterator[None]:
        """Let the network itself compute under the offsets; gradients flow to them."""
        dtype, place = compute_dtype(self.module), device_of(self.denoiser)
        own: dict[nn.Module, dict[str, Any]] = {}

        def before(layer: nn.Module, _: Any) -> None:
            if layer in own:
                return
            own[layer] = {name: layer._parameters[name] for name in self._layers[layer]}
            for name, offset in self._layers[layer].items():
                weight = own[layer][name].detach().to(place).float()
                layer._parameters[name] = (weight + offset.dense(place)).to(dtype)

        def after(layer: nn.Module, *_: Any) -> None:
            layer._parameters |= own.pop(layer, {})

        hooks = [layer.register_forward_pre_hook(before) for layer in self._layers]
        hooks += [layer.register_forward_hook(after, always_call=True) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for layer in list(own):  # whose own hook an interrupt kept from running
                after(layer)
