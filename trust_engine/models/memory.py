"""Memory: what is free before a model is loaded, and what was in use at most."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ModelError
from .unet_keys import layer_of

GB = 1e9
MARGIN = 1.1  # what loading takes besides the weights themselves
TRAINED = 16  # float32 copies of a trained weight: itself, Adam's, gradients and their graph
ACTIVATIONS = 8500  # elements alive at once in a UNet call, for a sample's position
AT_ONCE = 8  # prompts recorded at once, at most
MEMORY = {"low": 0.0, "auto": 1 * GB, "high": 5 * GB}  # bytes that recording may take


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


def batch_for(memory: str, latent_size: tuple[int, int], dtype: torch.dtype) -> int:
    """Say how many prompts to record at once: 1, 2, 4 or 8; dtype: what the UNet computes in.

    memory: low, auto or high. Nothing else counts, so that a run does not depend on what else a
    machine holds.
    """
    fits, batch = MEMORY[memory] / recording_needs(1, latent_size, dtype), 1
    while 2 * batch <= min(fits, AT_ONCE):
        batch *= 2
    return batch


def recording_needs(batch: int, latent_size: tuple[int, int], dtype: torch.dtype) -> int:
    """Estimate the bytes of a UNet call for some prompts, each as two samples."""
    return 2 * batch * ACTIVATIONS * dtype.itemsize * latent_size[0] * latent_size[1]


def training_needs(weights: Mapping[str, Tensor], together: bool) -> int:
    """Estimate the bytes that training q, k and v takes: by layers, or all of them together."""
    sizes: Counter[str] = Counter()
    for key, weight in weights.items():
        sizes["" if together else layer_of(key)] += weight.numel()
    return 4 * TRAINED * max(sizes.values(), default=0)


def check_unlearning(needed: int, least: int, device: torch.device, instead: str = "") -> None:
    """Raise ModelError when what unlearning needs besides the model is clearly not free.

    least: bytes with memory low; instead: what would need less, if anything would.
    """
    free = free_memory(device)
    if free is None or needed * MARGIN <= free:
        return
    ways = ["close other programs"]
    if least < needed:
        ways.append(f"take {{memory low}} ({least * MARGIN / GB:.1f} GB)")
    if instead:
        ways.append(instead)
    if device.type != "cpu":
        ways.append("or another {device}")
    raise ModelError(
        f"unlearning needs about {needed * MARGIN / GB:.1f} GB besides the model on {device.type}, "
        f"{free / GB:.1f} GB are free",
        remedy=", ".join(ways),
    )


@contextlib.contextmanager
def exhaustion_told() -> Iterator[None]:
    """Say what to do when memory runs out all the same."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        if isinstance(error, RuntimeError) and "memory" not in text:
            raise
        raise ModelError(
            "memory ran out; nothing was changed",
            remedy="close other programs, take {memory low}, the float16 version of the model, or "
            "another {device}",
        ) from error


class Peak:
    """Most memory in use on a device since this began, in bytes.

    On a CUDA device what torch's allocator has given out; elsewhere the process's resident size.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):  # where it is refused the peak is the process's own
                Path("/proc/self/clear_refs").write_text("5", "ascii")
        self.start = in_use(device)

    @property
    def bytes(self) -> int:
        """Return the peak so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _status("VmHWM")

    @property
    def extra(self) -> int:
        """Return how far the peak lies above what was in use at the start."""
        return max(0, self.bytes - self.start)


def in_use(device: torch.device) -> int:
    """Count the bytes in use now: by torch on a CUDA device, elsewhere by the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS")


def _status(name: str) -> int:
    """Read a figure of this process; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    except (OSError, ValueError, StopIteration):
        return 0
