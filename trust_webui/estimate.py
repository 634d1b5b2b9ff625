"""What a run will take, in time and memory, before it is started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from trust_engine.frontend.subjects import passes
from trust_engine.frontend.wording import sized, some, spelled
from trust_engine.models.attention import cross_attention_modules
from trust_engine.models.contract import Conditioning, LentModel
from trust_engine.spec import UnlearnSpec
from trust_engine.unlearn.estimate import (
    Speed,
    expected_seconds,
)
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.scrubbing.picture_stage import memory_of
from trust_engine.unlearn.trajectory import POSITIONS, sampler_of

from .host import Host, current
from .jobs import Job
from .speed import correct, known, timed
from .unlearn_job import Order, Unlearned, unlearn


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

    @property
    def brief(self) -> str:
        """Spell out time and memory alone."""
        parts = (("recording", self.recording), ("training", self.training),
                 ("pictures", self.drawing))  # fmt: skip
        told = ", ".join(f"{name} {spelled(spent)}" for name, spent in parts if spent)
        size = sized(self.memory)
        return f"Expected: {spelled(self.seconds)} ({told}) and {size} of memory beside the model."

    def __str__(self) -> str:
        return f"{self.brief} {self.prompts} prompts. Preserved: {some(self.preserve)}."

    def to_dict(self) -> dict[str, Any]:
        """Spell out what the API tells."""
        return {"seconds": round(self.seconds), "bytes": round(self.memory), "text": str(self)}


def expect(order: Order) -> Callable[[Job], Expected]:
    """Return the job that times the checkpoint, if it is new, and names what will be preserved."""

    def work(job: Job) -> Expected:
        host = current()
        with host.borrowed() as said:
            job.said += said
            lent = host.lend(order.resolution, job.check)
            speed = timed(job, host, lent, order.resolution)
            return _expected(Unlearning(lent, order.spec), order, speed)

    return work


def estimate(host: Host, order: Order) -> Expected | None:
    """Say it at once, without the host's turn; None for a checkpoint that has not been timed.

    Which words will be proposed to preserve is left open: only how many they are counts here.
    """
    speed = known(host, order.resolution)
    if speed is None:
        return None
    lent = host.lend(order.resolution)
    blind = replace(lent, encoder=_Counting(lent.encoder.count_tokens))
    return _expected(Unlearning(blind, order.spec), order, speed)


def watched(order: Order) -> Callable[[Job], Unlearned]:
    """Return the job that unlearns, after which estimates go by what it took."""
    work = unlearn(order)

    def run(job: Job) -> Unlearned:
        # Asked for before: once the run is over, nothing may fail any more and lose it.
        host, told = current(), estimate(current(), order)
        done = work(job)
        if told is not None and not order.spec.whole_unet:  # whose formulas are rough
            correct(host, order.resolution, job.seconds / told.seconds)
        return done

    return run


class _Counting:
    """An encoder that reads nothing, so that no text encoder has to be at hand."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self.count_tokens = count

    def with_syntax(self) -> _Counting:
        """Read prompts of any syntax."""
        return self

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Take all prompts to be alike."""
        return Conditioning(torch.zeros(len(prompts), 1, 1))


def _expected(run: Unlearning, order: Order, speed: Speed) -> Expected:
    recording, training = expected_seconds(run, speed)
    drawing = passes(order.pictures, order.spec.sampling) * speed.one
    return Expected(recording, training, drawing, _memory(run.model, run, order.spec),
                    len(run.prompts.targets) * 2 + len(run.prompts.preserve),
                    run.prompts.kept)  # fmt: skip


def _memory(lent: LentModel, run: Unlearning, spec: UnlearnSpec) -> float:
    """Estimate bytes beside the loaded model: recorded states, and what training holds."""
    layers = cross_attention_modules(lent.denoiser)
    widths = sum(module.to_q.weight.shape[1] for module in layers.values())  # type: ignore[union-attr]
    how = sampler_of(spec)
    states = 2 * 2 * run.recorded * how.steps * POSITIONS * widths  # cond and uncond, float16
    sizes = [sum(getattr(m, f"to_{c}").weight.numel() for c in "qkv") for m in layers.values()]
    if spec.through_unet:
        whole = sum(p.numel() * p.element_size() for p in lent.denoiser.module.parameters())
        return states + whole + 4 * 6 * sum(sizes)
    trained = states + 4 * 8 * max(sizes)
    return max(trained, memory_of(lent, spec)) if spec.robust else trained
