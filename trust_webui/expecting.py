"""What a run will take, in time and memory, before it is started."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trust_engine.attention import read_layer
from trust_engine.denoiser import device_of
from trust_engine.forgetting import Forgetting
from trust_engine.local import LayerProblem, Situation
from trust_engine.memory import TRAINED
from trust_engine.robust import BATCH
from trust_engine.spec import UnlearnSpec
from trust_engine.trajectory import POSITIONS
from trust_engine.unlearn import LentModel, Unlearning

from .host import current
from .jobs import Job
from .work import Order, drawing_passes, some

ROWS = 2  # of the UNet pass that is timed
MB, GB = 2**20, 2**30


@dataclass(frozen=True)
class Expected:
    """Seconds of recording, training and drawing, and bytes beside the loaded model."""

    recording: float
    training: float
    drawing: float
    memory: float
    prompts: int
    preserve: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Return the whole time."""
        return self.recording + self.training + self.drawing

    def __str__(self) -> str:
        parts = (("recording", self.recording), ("training", self.training),
                 ("pictures", self.drawing))  # fmt: skip
        told = ", ".join(f"{name} {spelled(spent)}" for name, spent in parts if spent)
        size = f"{self.memory / GB:.1f} GB" if self.memory > GB else f"{self.memory / MB:.0f} MB"
        return (
            f"Expected: {spelled(self.seconds)} ({told}) and {size} of memory beside the model. "
            f"{self.prompts} prompts. Preserved: {some(self.preserve)}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Spell out what the API tells."""
        return {"seconds": round(self.seconds), "bytes": round(self.memory), "text": str(self)}


def spelled(seconds: float) -> str:
    """Spell a span of time out."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def expect(order: Order) -> Callable[[Job], Expected]:
    """Return the job that times one UNet pass and one training step of each kind of layer."""

    def work(job: Job) -> Expected:
        host, spec = current(), order.spec
        with host.borrowed() as said:
            job.said += said
            lent = host.lend(order.resolution)
            run = Unlearning(lent, spec)
            job.tick(1, 3, "timing a UNet pass")
            one = _pass_seconds(lent)
            job.tick(2, 3, "timing a training step")
            passes = recording_passes(run)
            if spec.robust:
                training = 7 * BATCH * one * spec.steps  # two batches there and back, one there
            elif spec.through_unet:
                training = 3 * 4 * 8 * one * spec.steps  # forward and back, two batches, twice
            else:
                training = _training_seconds(lent, run, spec)
            memory = _memory(lent, run, spec)
        return Expected(passes * one, training, drawing_passes(order.pictures) * one, memory,
                        len(run.prompts.targets) * 2 + len(run.prompts.preserve),
                        tuple(dict.fromkeys(run.prompts.preserve)))  # fmt: skip

    return work


def recording_passes(run: Unlearning) -> int:
    """Count the UNet passes, one sample each, that a run records with."""
    layers = len(_layers(run.model))
    pieces = 1 if run.spec.together else layers
    return run.total - pieces * run.spec.steps


def _layers(lent: LentModel) -> dict[str, nn.Module]:
    named = lent.denoiser.module.named_modules()
    return {name: module for name, module in named if name.endswith(".attn2")}


@torch.inference_mode(False)
def _pass_seconds(lent: LentModel) -> float:
    """Time a pass, the second of two: the first may still bring the UNet to its device."""
    cond = lent.encoder.encode(["a picture"] * ROWS)
    x = torch.randn(ROWS, 4, *lent.latent_size, generator=torch.Generator().manual_seed(0))
    t, spent = torch.full((ROWS,), 500), 0.0
    with torch.no_grad():
        for _ in range(2):
            started = time.perf_counter()
            float(lent.denoiser(x, t, cond).float().sum())  # waits for the GPU
            spent = time.perf_counter() - started
    return spent / ROWS


@torch.inference_mode(False)
@torch.enable_grad()
def _training_seconds(lent: LentModel, run: Unlearning, spec: UnlearnSpec) -> float:
    """Time one step of one layer of each shape, on states drawn by chance."""
    layers = _layers(lent)
    kinds = {name: tuple(module.to_q.weight.shape) for name, module in layers.items()}  # type: ignore[union-attr]
    counts, firsts = Counter(kinds.values()), {kind: name for name, kind in kinds.items()}
    device, spent = device_of(lent.denoiser), 0.0
    context = lent.encoder.encode([""]).context.float().to(device)
    for kind, name in firsts.items():
        layer = read_layer(layers[name])
        prompts = len(run.prompts.targets) + len(run.prompts.preserve)
        x = torch.randn(prompts, spec.trajectory_steps * POSITIONS, kind[1], device=device)
        far = context.expand(prompts, -1, -1)
        goal = far + 0.1 * torch.randn_like(far)
        rows = torch.arange(prompts, device=device)
        problem = LayerProblem(
            layer, Situation(x, rows, goal, far), Situation(x, rows, far, far), spec.eta, spec.seed
        )
        training = Forgetting(problem, spec)
        training.step()
        started = time.perf_counter()
        training.step()
        spent += (time.perf_counter() - started) * counts[kind] * spec.steps
    return spent


def _memory(lent: LentModel, run: Unlearning, spec: UnlearnSpec) -> float:
    """Estimate bytes beside the loaded model: recorded states, and what training holds."""
    layers = _layers(lent)
    if spec.robust:
        return 4 * TRAINED * sum(p.numel() for p in lent.denoiser.module.parameters())
    widths = sum(module.to_q.weight.shape[1] for module in layers.values())  # type: ignore[union-attr]
    kept = recording_passes(run) // (spec.trajectory_steps * (2 if spec.cfg != 1 else 1))
    states = 2 * 2 * kept * spec.trajectory_steps * POSITIONS * widths  # told and free, float16
    sizes = [sum(getattr(m, f"to_{c}").weight.numel() for c in "qkv") for m in layers.values()]
    if spec.through_unet:
        whole = sum(p.numel() * p.element_size() for p in lent.denoiser.module.parameters())
        return states + whole + 4 * 6 * sum(sizes)
    return states + 4 * 8 * max(sizes)
