"""How much memory is free, asked before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from .errors import ModelError

GB = 1e9
MARGIN = 1.1  # what loading takes besides the weights themselves


def free_memory(device: torch.device) -> int | None:
    """Count the free bytes of a device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    free = [n for n in (_of_system(), _of_container()) if n is not None]
    return min(free, default=None)


def _of_system() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        told = dict(line.split(":", 1) for line in lines)
        return int(told["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _of_container() -> int | None:
    """Read what a container's limit (cgroup 2) leaves; page cache can be taken back."""
    folder = Path("/sys/fs/cgroup")
    try:
        most = int((folder / "memory.max").read_text("ascii"))
        used = int((folder / "memory.current").read_text("ascii"))
        lines = (folder / "memory.stat").read_text("ascii").splitlines()
        told = dict(line.split() for line in lines)
        return most - used + int(told["file"])
    except (OSError, ValueError, KeyError):
        return None


def check_memory(needed: int, device: torch.device, what: str) -> None:
    """Raise ModelError when `needed` bytes are clearly not free on a device."""
    free = free_memory(device)
    if free is not None and needed * MARGIN > free:
        raise ModelError(
            f"{what}: needs about {needed * MARGIN / GB:.1f} GB of memory on {device.type}, "
            f"{free / GB:.1f} GB are free; close other programs, take the float16 version of the "
            "model, or choose another --device"
        )
