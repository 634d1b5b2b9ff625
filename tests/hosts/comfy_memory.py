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

        def scarce(n: torch.Tensor, context: Any, value: Any, _options: Any) -> tuple:
            if len(n) > rows:
                raise torch.cuda.OutOfMemoryError("Allocation on device 0 would exceed its memory")
            return n, context, value

        clone = model.clone()
        clone.set_model_attn2_patch(scarce)  # a private copy of the UNet meets it, too
        return (clone,)


NODE_CLASS_MAPPINGS = {"TestScarceMemory": TestScarceMemory}
