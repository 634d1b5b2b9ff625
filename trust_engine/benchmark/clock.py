"""A clock for UNet calls and for the work around them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from ..models.contract import Conditioning, ModuleDenoiser


@dataclass
class Clock:
    """Seconds that UNet calls take, and the passes in them.

    On a CPU the seconds are the process's own, of all its threads, so that what else a machine
    does leaves the ratios alone; on an accelerator they are real time, and it is waited for.
    """

    device: torch.device
    seconds: float = 0.0
    passes: int = 0

    def now(self) -> float:
        """Return the time when all that was begun is done."""
        if self.device.type == "cpu":
            return time.process_time()
        getattr(torch, self.device.type).synchronize()
        return time.perf_counter()

    def watch(self, denoiser: ModuleDenoiser) -> ModuleDenoiser:
        """Return the same denoiser, its calls timed."""

        def forward(x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
            begun = self.now()
            output = denoiser.forward(x, t, cond)
            self.seconds += self.now() - begun
            self.passes += len(x)
            return output

        return replace(denoiser, forward=forward)
