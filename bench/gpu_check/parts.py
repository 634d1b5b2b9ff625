"""The parts: what each does, and the figures that it gives, as they come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Figures = Iterator[tuple[str, dict[str, Any]]]
Part = Callable[[bool, Path], Figures]
"""Called with dry and the folder for pictures."""
CAP = 8e9  # bytes of the small card
GB = 1e9
SCRUBBED = (
    12  # blocks: random weights have nothing to find, and eigenproblems of 5,120 take minutes
)
SHORT = {"passes": 48, "steps": 1}


def comfy(dry: bool, out: Path) -> Figures:
    """Sample a picture by ComfyUI's own code under one of our patches."""
    from .comfy_picture import picture

    yield "picture", picture(dry, out, Path(os.environ["COMFYUI_PATH"]))


def _speed(family: str, stage: str) -> Part:
    def part(dry: bool, out: Path) -> Figures:
        from trust_engine.benchmark.run import Question, bench

        device = _device(dry)
        asked = Question(
            "demo" if dry else family, device, parts=(stage,), **(SHORT if dry else {})
        )
        yield from bench(asked)

    return part


def _capped(family: str) -> Part:
    """Do the local engine's run with no more memory than a small card has."""

    def part(dry: bool, out: Path) -> Figures:
        if not dry:
            whole = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / whole))
        try:
            yield from _speed(family, "local")(dry, out)
        except (RuntimeError, MemoryError) as error:
            if "memory" not in str(error).lower():
                raise
            yield "refused", {"cap_gb": CAP / GB, "says": " ".join(str(error).split())[:300]}
        if not dry:
            yield "cap", {"cap_gb": CAP / GB, "peak_gb": torch.cuda.max_memory_allocated() / GB}

    return part


def robust(dry: bool, out: Path) -> Figures:
    """Scrub a few blocks, for robust mode's peak of memory and its seconds a pass and a block."""
    from trust_engine.benchmark.counting import WORD
    from trust_engine.benchmark.random_models import random_model
    from trust_engine.models.memory import Peak
    from trust_engine.spec import UnlearnSpec
    from trust_engine.unlearn.run import Unlearning

    device = _device(dry)
    model = random_model("demo" if dry else "sd15", device)
    spec = UnlearnSpec((WORD.concept,), robust=True, passes=48)
    peak, run = Peak(device), Unlearning(model.lend(), spec)
    drawn, blocks = list[tuple[float, int]](), dict[str, float]()
    for report in run:
        if report.standing is None and report.passes:
            drawn.append((time.perf_counter(), report.passes))
        elif report.standing is not None:
            blocks.setdefault(report.stage, time.perf_counter())
        if len(blocks) > SCRUBBED:
            break
    (began, before), (ended, passes), times = drawn[0], drawn[-1], list(blocks.values())
    yield (
        "robust",
        {
            "extra_gb": peak.extra / GB,
            "seconds_a_pass": (ended - began) / max(1, passes - before),
            "seconds_a_block": (times[-1] - times[0]) / max(1, len(times) - 1),
            "blocks": len(times) - 1,
        },
    )


def _device(dry: bool) -> torch.device:
    return torch.device("cpu" if dry else "cuda")


PARTS: dict[str, Part] = {
    "comfy": comfy,
    "sd15": _speed("sd15", "local"),
    "sdxl": _speed("sdxl", "local"),
    "sd15-8gb": _capped("sd15"),
    "sdxl-8gb": _capped("sdxl"),
    "robust": robust,
    "sd15-baselines": _speed("sd15", "baselines"),
    "sd15-global": _speed("sd15", "global"),
    "sdxl-baselines": _speed("sdxl", "baselines"),
    "sdxl-global": _speed("sdxl", "global"),
}
"""In order of what matters."""
