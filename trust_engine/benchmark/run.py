"""Speed and memory of both engines, and of other methods' steps, on full-size random models."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import ModelError
from ..models.load import LoadedModel
from ..models.memory import Peak, check_memory, in_use
from ..models.sampler import SamplerSettings, ddim, initial_noise
from ..spec import UnlearnSpec
from ..unlearn.run import Unlearning
from ..unlearn.word_knowledge import Knowledge
from .baselines import (
    ESD_ITERATIONS,
    ESD_SAMPLING,
    esd_update,
    salun_update,
    sample_for,
    sampling_passes,
    uce,
)
from .clock import Clock
from .counting import WORD, count_full_size
from .random_models import family_for, random_model, schedule_for

GLOBAL_STEPS = 2
REPEATS = 3
GB = 1e9


@dataclass(frozen=True)
class Question:
    """What to measure: family (sd15, sd2, sdxl), device, side in pixels (0: the family's own).

    passes, steps: of the local engine's measured run; 0: the engine's own defaults.
    """

    family: str
    device: torch.device
    resolution: int = 0
    passes: int = 0
    steps: int = 0
    parts: tuple[str, ...] = ("local", "global", "baselines")

    @property
    def latent_size(self) -> tuple[int, int]:
        """Return the latent's (h, w)."""
        own = family_for(self.family).sizes[schedule_for(self.family).prediction == "v"]
        return (self.resolution // 8,) * 2 if self.resolution else own

    @property
    def spec(self) -> UnlearnSpec:
        """Return the measured run's spec."""
        asked = {"passes": self.passes, "steps": self.steps}
        changes: dict[str, Any] = {name: value for name, value in asked.items() if value}
        return UnlearnSpec((WORD.concept,), **changes)


def bench(asked: Question) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure part by part; yields (part, figures). Sizes in GB of 1e9 bytes, work in TFLOP."""
    full, pair = count_full_size(asked.family)
    yield "counted at full size", full.figures
    yield "counted at full size, a combination", pair.figures
    model = random_model(asked.family, asked.device, latent_size=asked.latent_size)
    yield "machine", _machine(asked)
    yield "sampling", _sampling(model, asked.device)
    local: dict[str, Any] = {}
    if "local" in asked.parts:
        local = _local(model, asked)
        yield "local", local
        yield "projected", project(local, full.passes)
    if "global" in asked.parts:
        yield "global", _global(model, asked)
    if "baselines" in asked.parts:
        steps = _baselines(model, asked.device)
        yield "baselines", steps
        if local:
            yield "ratios", ratios(project(local, full.passes), steps)


def _machine(asked: Question) -> dict[str, Any]:
    device = asked.device
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "family": asked.family,
        "device": device.type,
        "card": card,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "resolution": 8 * asked.latent_size[0],
        "resident_gb": in_use(device) / GB,
        "seconds_are": "real time" if device.type != "cpu" else "of all threads together",
    }


def _sampling(model: LoadedModel, device: torch.device) -> dict[str, Any]:
    """Draw one picture's first steps with guidance: what the user's own sampling takes."""
    cond, uncond = model.encoder.encode(["a gun"]), model.encoder.encode([""])
    settings = SamplerSettings(20, 4.0)
    list(_some(ddim(model.denoiser, initial_noise([0], model.latent_size), cond, uncond, settings)))
    clock = Clock(device)
    watched = clock.watch(model.denoiser)
    peak = Peak(device)
    steps = ddim(watched, initial_noise([0], model.latent_size), cond, uncond, settings)
    list(_some(steps, REPEATS))
    return {
        "seconds_a_pass": clock.seconds / clock.passes,
        "extra_gb": peak.extra / GB,
    }


def _some(steps: Iterator[Any], count: int = 1) -> Iterator[Any]:
    for _ in range(count):
        yield next(steps)


def _local(model: LoadedModel, asked: Question) -> dict[str, Any]:
    """Run the local engine once; on an accelerator a small run warms it up."""
    if asked.device.type != "cpu":
        _timed_run(model, replace(asked.spec, steps=1, trajectory_steps=2, passes=12), asked.device)
    found, run = _timed_run(model, asked.spec, asked.device)
    steps = found["layers"] * asked.spec.steps
    return {
        **found,
        "passes": run.passes,
        "backward": run.backward,
        "steps_a_layer": asked.spec.steps,
        "seconds_a_pass": found["unet_seconds"] / run.passes,
        "seconds_a_layer_step": found["training_seconds"] / steps,
    }


def _timed_run(
    model: LoadedModel, spec: UnlearnSpec, device: torch.device
) -> tuple[dict[str, Any], Unlearning]:
    clock = Clock(device)
    lent = replace(model, denoiser=clock.watch(model.denoiser)).lend()
    peak, begun = Peak(device), clock.now()
    # What is timed is the method: the model's knowledge of words is no part of it.
    run = Unlearning(lent, spec, knowledge=Knowledge())
    ends, stages = dict[str, float](), set[str]()
    for report in run:
        stages.add(report.stage)
        ends[report.stage.split()[0]] = clock.now()
    total = clock.now() - begun
    training = ends["unlearning"] - ends["recording"]
    return {
        "layers": len(stages) - 1,
        "seconds": total,
        "unet_seconds": clock.seconds,
        "recording_seconds": ends["recording"] - begun,
        "training_seconds": training,
        "unet_share": round(clock.seconds / total, 4),
        "training_share": round(training / total, 4),
        "extra_gb": peak.extra / GB,
        "changed": run.diff.changed,
    }, run


def project(local: dict[str, Any], passes: int) -> dict[str, Any]:
    """Say what a concept would take with the engine's default passes and steps, as measured."""
    spec = UnlearnSpec((WORD.concept,))
    recording = passes * local["seconds_a_pass"]
    training = spec.steps * local["layers"] * local["seconds_a_layer_step"]
    return {
        "recording_seconds": recording,
        "training_seconds": training,
        "training_share": round(training / (recording + training), 4),
    }


def _global(model: LoadedModel, asked: Question) -> dict[str, Any]:
    """Take two steps of the global engine, activations recomputed; refused if memory lacks."""
    spec = UnlearnSpec(
        (WORD.concept,), engine="global", checkpointing=True, steps=GLOBAL_STEPS,
        trajectory_steps=2, passes=12,
    )  # fmt: skip
    entries = sum(
        weight.numel()
        for name, weight in model.denoiser.module.named_parameters()
        if ".attn2.to_" in name and ".to_out" not in name
    )
    try:
        check_memory(4 * 14 * entries, asked.device, "the global engine")
    except ModelError as error:
        return {"refused": str(error)}
    clock = Clock(asked.device)
    lent = replace(model, denoiser=clock.watch(model.denoiser)).lend()
    peak, run = Peak(asked.device), Unlearning(lent, spec, knowledge=Knowledge())
    times, costs = list[float](), list[tuple[int, int]]()
    for report in run:
        if report.stage != "recording":
            times.append(clock.now())
            costs.append((report.passes, report.backward))
    return {
        "seconds_a_step": times[-1] - times[-2],
        "passes_a_step": costs[-1][0] - costs[-2][0],
        "backward_a_step": costs[-1][1] - costs[-2][1],
        "extra_gb": peak.extra / GB,
    }


def _baselines(model: LoadedModel, device: torch.device) -> dict[str, Any]:
    batch = sample_for(model)
    clock = Clock(device)

    def timed(work: Callable[[], None], repeats: int = REPEATS) -> dict[str, float]:
        peak, taken = Peak(device), []
        for _ in range(repeats):
            begun = clock.now()
            work()
            taken.append(clock.now() - begun)
        return {"seconds": min(taken), "extra_gb": peak.extra / GB}

    drawing = timed(lambda: sampling_passes(model.denoiser, batch))
    esd = timed(lambda: esd_update(model, batch))
    return {
        "esd_step": {
            **esd,
            "seconds": esd["seconds"] + ESD_SAMPLING * drawing["seconds"],
            "update_seconds": esd["seconds"],
            "passes": 2 * ESD_SAMPLING + 3,
            "backward": 1,
        },
        "salun_step": {
            **timed(lambda: salun_update(model, batch)), "passes": 3, "backward": 2,
        },
        "uce": {**timed(lambda: uce(model), 1), "passes": 0, "backward": 0},
    }  # fmt: skip


def ratios(projected: dict[str, Any], steps: dict[str, Any]) -> dict[str, float]:
    """Compare the local engine at its defaults with the others' steps, timed in the same run."""
    whole = projected["recording_seconds"] + projected["training_seconds"]
    esd = steps["esd_step"]["seconds"]
    return {
        "local_run_in_esd_steps": round(whole / esd, 2),
        "local_run_of_esd_run": round(whole / (ESD_ITERATIONS * esd), 4),
        "local_run_in_salun_steps": round(whole / steps["salun_step"]["seconds"], 2),
        "local_run_in_uce_runs": round(whole / steps["uce"]["seconds"], 1),
    }
