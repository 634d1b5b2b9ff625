"""How fast the loaded checkpoint is on this machine: timed once for each size, then remembered."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trust_engine.attention import read_layer
from trust_engine.denoiser import device_of
from trust_engine.forgetting import Forgetting
from trust_engine.local import PROMPTS_A_STEP, LayerProblem, Situation
from trust_engine.spec import CHOICES, ConceptSpec, UnlearnSpec
from trust_engine.trajectory import POSITIONS
from trust_engine.unlearn import LentModel

from .host import Host
from .jobs import Job

ROWS = 2  # of the UNet pass that is timed
KEPT = 8  # checkpoints and sizes that are remembered
_known: dict[Any, Speed] = {}


@dataclass(frozen=True)
class Speed:
    """Seconds of a UNet pass of one sample, and of a training step of all layers by objective."""

    one: float
    step: dict[str, float]


def known(host: Host, resolution: int) -> Speed | None:
    """Return what has been timed before; None when it has not, or when no model is loaded."""
    return _known.get(_key(host, resolution)) if host.ready else None


def timed(job: Job, host: Host, lent: LentModel, resolution: int) -> Speed:
    """Return what is known, and time it first if need be; within `borrowed`."""
    key = _key(host, resolution)
    if key not in _known:
        job.tick(1, 3, "timing a UNet pass")
        one = _pass_seconds(lent)
        job.tick(2, 3, "timing a training step")
        step = {kind: _step_seconds(lent, kind) for kind in CHOICES["objective"]}
        while len(_known) >= KEPT:
            _known.pop(next(iter(_known)))
        _known[key] = Speed(one, step)
    return _known[key]


def correct(host: Host, resolution: int, factor: float) -> None:
    """Scale what was timed by what a whole run took of it: a moment may have been a busy one."""
    speed = known(host, resolution)
    if speed is None:  # another checkpoint was chosen meanwhile
        return
    step = {kind: factor * spent for kind, spent in speed.step.items()}
    _known[_key(host, resolution)] = Speed(factor * speed.one, step)


def layers_of(lent: LentModel) -> dict[str, nn.Module]:
    """List the cross-attention layers."""
    named = lent.denoiser.module.named_modules()
    return {name: module for name, module in named if name.endswith(".attn2")}


def _key(host: Host, resolution: int) -> Any:
    return (*host.identity, resolution)


@torch.inference_mode(False)
def _pass_seconds(lent: LentModel) -> float:
    """Time a pass, the faster of two; one before them may still bring the UNet to its device."""
    cond = lent.encoder.encode(["a picture"] * ROWS)
    x = torch.randn(ROWS, 4, *lent.latent_size, generator=torch.Generator().manual_seed(0))
    t, spent = torch.full((ROWS,), 500), list[float]()
    with torch.no_grad():
        for _ in range(3):
            started = time.perf_counter()
            float(lent.denoiser(x, t, cond).float().sum())  # waits for the GPU
            spent.append(time.perf_counter() - started)
    return min(spent[1:]) / ROWS


@torch.inference_mode(False)
@torch.enable_grad()
def _step_seconds(lent: LentModel, objective: str) -> float:
    """Time one step of one layer of each shape, on states drawn by chance."""
    spec = UnlearnSpec((ConceptSpec(("something",)),), objective=objective)  # type: ignore[arg-type]
    layers, prompts = layers_of(lent), 2 * PROMPTS_A_STEP
    kinds = {name: tuple(module.to_q.weight.shape) for name, module in layers.items()}  # type: ignore[union-attr]
    counts, firsts = Counter(kinds.values()), {kind: name for name, kind in kinds.items()}
    device, spent = device_of(lent.denoiser), 0.0
    context = lent.encoder.encode([""]).context.float().to(device)
    for kind, name in firsts.items():
        layer = read_layer(layers[name])
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
        spent += (time.perf_counter() - started) * counts[kind]
    return spent
