"""Which number type a machine trains in."""

from __future__ import annotations

import functools
import time

import torch


@functools.cache
def quick_type(device: torch.device) -> torch.dtype:
    """Return what a device multiplies matrices in most quickly: bfloat16, or float32.

    A processor without instructions for bfloat16 takes sixty times as long, and the library that
    emulates them calls them supported: so both are timed.
    """
    if device.type == "cuda":
        return torch.bfloat16

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(256, 256, dtype=dtype)
        spent = []
        for _ in range(4):
            started = time.perf_counter()
            matrix @ matrix
            spent.append(time.perf_counter() - started)
        return min(spent)

    return min((torch.float32, torch.bfloat16), key=seconds)
