"""What every training stage shares: scenes in batches, averaged weights, a log, resuming."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bench.world.muon import Muon
from bench.world.number_type import quick_type
from bench.world.pace import Pace
from bench.world.scenes import draw, random_scene
from trust_engine.demo.vocabulary import OBJECTS, Scene

Module = TypeVar("Module", bound=nn.Module)
RUNS = Path("runs/world")
"""Where stages keep their state, logs and sample grids; safe to delete when the model is done."""


def pick_device() -> torch.device:
    """Train on a GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Compute in bfloat16 where that is quick; weights stay in float32."""
    quick = quick_type(device) != torch.float32
    return torch.autocast(device.type, torch.bfloat16, enabled=quick)


def scene_batch(
    rng: np.random.Generator,
    count: int,
    objects: Sequence[str] = tuple(OBJECTS),
    lattice: int = 1,
) -> tuple[Tensor, list[Scene]]:
    """Draw `count` scenes: pixels (b, 3, 128, 128) in -1..1, and what they show."""
    scenes = [random_scene(rng, objects) for _ in range(count)]
    return to_tensor(np.stack([draw(scene, rng, lattice) for scene in scenes])), scenes


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Turn (b, h, w, 3) uint8 into (b, 3, h, w) float in -1..1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def channels_last(module: Module, device: torch.device) -> Module:
    """Move a network to the device in the memory layout that convolutions like best."""
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Stage:
    """A training run that can be stopped and resumed: weights, average, optimiser, log."""

    def __init__(
        self, name: str, modules: dict[str, nn.Module], pace: Pace, runs: Path = RUNS
    ) -> None:
        self.folder = runs / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.module = nn.ModuleDict(modules)
        self.steps, self.rate, self.decay, self.step = pace.steps, pace.rate, pace.decay, 0
        self.warm = 0  # the step at which the rate was last warmed up
        trained = [p for p in self.module.parameters() if p.requires_grad]
        matrices = [p for p in trained if pace.muon and p.ndim >= 2]
        chosen = {id(p) for p in matrices}
        rest = [p for p in trained if id(p) not in chosen]
        self.optimisers: list[torch.optim.Optimizer] = []
        if rest:
            self.optimisers.append(
                torch.optim.AdamW(rest, pace.rate, weight_decay=1e-3, fused=True)
            )
        if matrices:
            self.optimisers.append(Muon(matrices, pace.rate))
        self.average = {k: v.clone().float() for k, v in self.module.state_dict().items()}
        self._saved = time.monotonic()
        if (self.folder / "state.pt").exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.folder / "state.pt", weights_only=True)
        self.module.load_state_dict(state["module"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.average, self.step = state["average"], state["step"]
        self.log(resumed=self.step)

    def run(self, loss_of: Callable[[int], tuple[Tensor, dict[str, float]]]) -> Iterator[int]:
        """Take the remaining steps; `loss_of(step)` gives a loss and figures for the log."""
        started, first = time.monotonic(), self.step
        while self.step < self.steps:
            loss, figures = loss_of(self.step)
            self.module.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            for optimiser in self.optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = self.rate * schedule(self.step, self.steps, self.warm)
                optimiser.step()
            self._update_average()
            self.step += 1
            if self.step % 50 == 0:
                pace = (time.monotonic() - started) / (self.step - first)
                self.log(
                    loss=round(float(loss.detach()), 5), seconds_a_step=round(pace, 3), **figures
                )
            if time.monotonic() - self._saved > 240:
                self.save()
            yield self.step
        self.save()

    def _update_average(self) -> None:
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            now = self.module.state_dict()
            torch._foreach_lerp_(list(self.average.values()), list(now.values()), 1 - decay)

    def save(self) -> None:
        """Keep everything that resuming needs."""
        self._saved = time.monotonic()
        state = {
            "module": self.module.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
            "step": self.step,
        }
        torch.save(state, self.folder / "state.tmp")
        (self.folder / "state.tmp").rename(self.folder / "state.pt")

    def averaged(self, name: str) -> dict[str, Tensor]:
        """Return the averaged weights of one of the stage's modules."""
        prefix = name + "."
        return {k[len(prefix) :]: v for k, v in self.average.items() if k.startswith(prefix)}

    def log(self, **figures: object) -> None:
        """Append a line of JSON to the stage's log and print it."""
        line = json.dumps({"step": self.step, **figures})
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        print(self.folder.name, line, flush=True)


def schedule(step: int, steps: int, first: int = 0, warmup: int = 200) -> float:
    """Warm up from `first`, hold, then fall to zero along a cosine over the run's last 60 %."""
    progress = step / steps
    level = 1.0 if progress < 0.4 else 0.5 * (1 + math.cos(math.pi * (progress - 0.4) / 0.6))
    return level * min(1.0, (step - first + 1) / warmup)
