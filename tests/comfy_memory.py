"""Loaded by a real ComfyUI beside our pack, in tests: a MODEL that runs out of memory at will."""

from __future__ import annotations

from typing import Any

import torch


class TestScarceMemory:
    """Let calls of the UNet with more than so many rows fail, as the allocator of a GPU would."""

    CATEGORY = "testing"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "limit"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "rows": ("INT", {"default": 2})}}

    def limit(self, model: Any, rows: int) -> tuple[Any]:
        """Return a clone with a wrapper that counts the rows."""

        def scarce(apply: Any, told: dict[str, Any]) -> torch.Tensor:
            if len(told["input"]) > rows:
                raise torch.cuda.OutOfMemoryError("Allocation on device 0 would exceed its memory")
            return apply(told["input"], told["timestep"], **told["c"])

        clone = model.clone()
        clone.set_model_unet_function_wrapper(scarce)
        return (clone,)


NODE_CLASS_MAPPINGS = {"TestScarceMemory": TestScarceMemory}
