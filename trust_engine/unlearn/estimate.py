"""How fast a lent model is on this machine, and what a run will therefore take."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .. import seeds
from ..models.attention import cross_attention_modules, read_layer
from ..models.contract import LentModel, device_of
from ..models.load import LoadedModel
from ..spec import ConceptSpec, UnlearnSpec
from .end_to_end import BATCH
from .layerwise import PROMPTS_A_STEP, LayerPairs, LayerProblem
from .run import Unlearning
from .scrubbing.eigen import operations
from .scrubbing.picture_stage import drawing_passes, flops_of, passes_of, relabelling_work
from .trainer import SelectiveTrainer
from .trajectory import POSITIONS, sampler_of

ROWS = 2  # of the UNet pass that is timed
STEPS = 3  # that are timed
EIGEN = 320  # width of the eigenproblem that is timed
BACK = 2  # passes forward that a pass back takes


@dataclass(frozen=True)
class Speed:
    """Seconds of a UNet pass of one sample, and of a training step of all layers by objective."""

    one: float
    step: Mapping[str, float]


@torch.inference_mode(False)
def pass_seconds(lent: LentModel | LoadedModel) -> float:
    """Time a pass, the faster of two; one before them may still bring the UNet to its device."""
    cond = lent.encoder.encode(["a picture"] * ROWS)
    x = torch.randn(ROWS, 4, *lent.latent_size, generator=seeds.generator(seeds.PROBE))
    t, spent = torch.full((ROWS,), 500), list[float]()
    with torch.no_grad():
        for _ in range(3):
            started = time.perf_counter()
            float(lent.denoiser(x, t, cond).float().sum())  # waits for the GPU
            spent.append(time.perf_counter() - started)
    return min(spent[1:]) / ROWS


@torch.inference_mode(False)
@torch.enable_grad()
def step_seconds(lent: LentModel, objective: str) -> float:
    """Time one step of one layer of each shape, on states drawn by chance."""
    spec = UnlearnSpec((ConceptSpec(("something",)),), objective=objective)  # type: ignore[arg-type]
    layers: dict[str, Any] = {**cross_attention_modules(lent.denoiser)}
    prompts = 2 * PROMPTS_A_STEP
    kinds = {name: tuple(module.to_q.weight.shape) for name, module in layers.items()}
    counts, firsts = Counter(kinds.values()), {kind: name for name, kind in kinds.items()}
    device, spent = device_of(lent.denoiser), 0.0
    chance = seeds.generator(seeds.PROBE)
    context = lent.encoder.encode([""]).context.float().to(device)
    for kind, name in firsts.items():
        layer, states = read_layer(layers[name]), spec.trajectory_steps * POSITIONS
        x = torch.randn(prompts, states, kind[1], generator=chance).to(device)
        far = context.expand(prompts, -1, -1)
        goal = far + 0.1 * torch.randn(far.shape, generator=chance).to(device)
        rows = torch.arange(prompts, device=device)
        problem = LayerProblem(
            layer,
            LayerPairs(x, rows, goal, far),
            LayerPairs(x, rows, far, far),
            spec.eta,
            spec.seed,
        )
        training = SelectiveTrainer(problem, spec)
        spent += _usual_seconds(training) * counts[kind]
    return spent


def _usual_seconds(training: SelectiveTrainer) -> float:
    """Time some steps after the first; the middle one, for another process may hold one up."""
    training.step()
    spent = []
    for _ in range(STEPS):
        started = time.perf_counter()
        training.step()
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


@cache
def float64_speed() -> float:
    """Time an eigenproblem on the processor, in operations a second as `flops_of` counts them."""
    d = EIGEN
    matrix = torch.randn(d, d, dtype=torch.float64, generator=seeds.generator(seeds.PROBE))
    matrix = matrix @ matrix.T
    spent = []
    for _ in range(2):
        started = time.perf_counter()
        torch.linalg.eigh(matrix)
        spent.append(time.perf_counter() - started)
    return operations(d) / min(spent)


def recording_passes(run: Unlearning) -> int:
    """Count the UNet passes, one sample each, that a run draws and records with."""
    drawing = drawing_passes(run.spec, run.lists) if run.lists else 0
    return drawing + sampler_of(run.plan).passes(run.recorded)


def expected_seconds(run: Unlearning, speed: Speed) -> tuple[float, float]:
    """Say how long a run records and trains if it does not stop early; a resumed one all of it."""
    spec, one = run.plan, speed.one
    scrubbing = 0.0
    if spec.robust:
        solving = flops_of(run.model.denoiser, spec) / float64_speed()
        scrubbing = (passes_of(run.spec) + relabelling_work(run.spec)) * one + solving
    if spec.through_unet:
        # Two batches there and back, and again for the objective's penalty.
        training = 2 * 2 * (1 + BACK) * BATCH * one * spec.steps
    else:
        training = speed.step[spec.objective] * spec.steps
    return (run.asking + recording_passes(run)) * one, scrubbing + training
