"""A UNet of our own with a MODEL's effective weights: for gradients, or to exchange some."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import comfy.ops
import torch
from torch import Tensor, nn

from ..trust_engine.models.contract import Conditioning, ModuleDenoiser
from .host import schedule_of
from .weights import Weights

BESIDE = 2**30  # bytes that relabelling in robust mode holds beside the weights


@torch.inference_mode(False)
def private_denoiser(model: Any, rows: int = 0, gradients: bool = True) -> ModuleDenoiser:
    """Build a copy of a MODEL's UNet, of ordinary tensors, frozen, on its device.

    gradients: it is in float32, to be trained; else in what the MODEL computes in. rows:
    how much of a batch it takes at once, 0 for all of it; gradients hold all of it anyway.
    """
    schedule = schedule_of(model)
    weights, device = Weights(model), model.load_device
    dtype = torch.float32 if gradients else _computes_in(model)
    room = (2 if gradients else 1) * dtype.itemsize
    room *= sum(_count(shape) for shape in weights.shapes.values())
    with torch.inference_mode():
        mm.free_memory(room if gradients else room + BESIDE, device)
    net = _build(model, weights, dtype).to(device)
    options = dict(model.model_options.get("transformer_options", {}))
    options["optimized_attention_override"] = _plain

    def forward(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        if not rows or len(x) <= rows or torch.is_grad_enabled():
            return whole(x, t, cond)
        parts = (slice(i, i + rows) for i in range(0, len(x), rows))
        return torch.cat([whole(x[part], t[part], cond.select(part)) for part in parts])

    def whole(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        mm.throw_exception_if_processing_interrupted()  # a step may take many passes
        extra = {} if cond.vector is None else {"y": cond.vector}
        told = {"context": cond.context, "transformer_options": dict(options)}
        device = next(net.parameters()).device
        moved = {key: v.to(device) if isinstance(v, Tensor) else v for key, v in extra.items()}
        told["context"] = cond.context.to(device)
        return net(x.to(device), t.to(device), **told, **moved)

    return ModuleDenoiser(net, schedule, forward, _same, _same)


def _computes_in(model: Any) -> torch.dtype:
    """Tell in which type the host computes a MODEL; on a processor float32 is quickest."""
    if model.load_device.type == "cpu":
        return torch.float32
    found: torch.dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    return found


def _build(model: Any, weights: Weights, dtype: torch.dtype) -> nn.Module:
    shared = model.model.diffusion_model
    config = {**model.model.model_config.unet_config, "dtype": dtype}
    operations = comfy.ops.disable_weight_init
    net: nn.Module = type(shared)(**config, device="cpu", operations=operations)
    # Read one by one: the state dict would hold what is patched in at the moment.
    net.load_state_dict({key: weights.read(key) for key in weights.shapes})
    return net.eval().requires_grad_(False)


def _plain(_chosen: Any, *args: Any, **kwargs: Any) -> Any:
    """Attend by torch's own kernel: those that users switch on have no backward pass to rely on."""
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _same(name: str) -> str:
    return name
