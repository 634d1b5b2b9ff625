"""Record trajectories: latents, and what enters each cross-attention layer, while they denoise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import seeds
from ..distributed import SINGLE, Workers
from ..errors import SpecError
from ..models.attention import cross_attention_modules, watch_inputs
from ..models.contract import Conditioning, Denoiser, LentModel
from ..models.sampler import SamplerSettings, initial_noise, sample, sampled
from ..prompts.concept import PromptSet
from ..spec import UnlearnSpec

GROUP = 8  # prompts that keep the same positions, however many are recorded at once
STORED = ("told", "free")  # what `cond` and `uncond` are called in a state's file
POSITIONS = 24  # image positions kept a layer, prompt and step; each is an independent query


class Part:
    """One batch of prompts on its way: latents x (b, 4, h, w) after `done` steps, what was seen.

    What a step under way has seen so far does not count until `stepped` says that it is over.
    """

    def __init__(self, x: Tensor, seed: int = 0) -> None:
        self.x, self.done = x, 0
        self.latents: list[Tensor] = []
        self.cond: dict[str, list[Tensor]] = defaultdict(list)
        self.uncond: dict[str, list[Tensor]] = defaultdict(list)
        self.chooser = seeds.generator(seed)
        self._mark = self.chooser.get_state()

    def see(self, layer: str, x: Tensor, guided: bool) -> None:
        """Keep a random subset of the positions x (b, n, d) that enter a layer."""
        kept = torch.randperm(x.shape[1], generator=self.chooser)[:POSITIONS].to(x.device)
        states = x[:, kept].half().cpu()
        uncond, cond = states.chunk(2) if guided else (states, states)
        self.uncond[layer].append(uncond)
        self.cond[layer].append(cond)

    def stepped(self, x: Tensor) -> None:
        """Note that a step is over, and what the next one starts from."""
        self.x, self.done = x, self.done + 1
        self._mark = self.chooser.get_state()

    def tensors(self) -> dict[str, Tensor]:
        """Return what going on needs, as of the last step that is over."""
        kept = {"x": self.x, "chooser": self._mark}
        if self.done and self.latents:
            kept["latents"] = torch.stack(self.latents[: self.done], 1)
        for name, lists in zip(STORED, (self.cond, self.uncond), strict=True):
            for layer, seen in lists.items():
                if self.done:
                    kept[f"{name}.{layer}"] = torch.cat(seen[: self.done], 1)
        return kept

    @classmethod
    def of(cls, kept: Mapping[str, Tensor], done: int) -> Part:
        """Take up what `tensors` returned; raises ValueError or KeyError for anything else."""
        part = cls(kept["x"])
        part.done = done
        part.chooser.set_state(kept["chooser"])
        part._mark = part.chooser.get_state()
        if "latents" in kept:
            if kept["latents"].shape[1] != done:
                raise ValueError("a batch's latents are not those of its steps")
            part.latents = list(kept["latents"].unbind(1))
        for name, lists in zip(STORED, (part.cond, part.uncond), strict=True):
            for key, seen in kept.items():
                if key.startswith(f"{name}."):
                    each, rest = divmod(seen.shape[1], done)
                    if rest:
                        raise ValueError(f"{key} is not of {done} steps")
                    lists[key.removeprefix(f"{name}.")] = list(seen.split(each, 1))
        return part

    def again(self) -> Part:
        """Copy it, so that going on leaves this one as it is."""
        return Part.of(self.tensors(), self.done)


@dataclass
class Recording:
    """States by layer: `cond` under each prompt and `uncond` under "", (prompts, n, d) float16.

    latents: what the UNet was given, (prompts, steps, 4, h, w); timesteps: (steps,) in 0..999.
    All but `passes` is there when recording is over; until then `parts` holds the batches so far.
    """

    cond: dict[str, Tensor] = field(default_factory=dict)
    uncond: dict[str, Tensor] = field(default_factory=dict)
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    timesteps: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    passes: int = 0
    parts: list[Part] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Tell whether all is recorded."""
        return not self.parts and len(self.timesteps) > 0

    def states(self, layer: str) -> tuple[Tensor, Tensor]:
        """Return a layer's cond and uncond states, each (prompts, steps * positions, d)."""
        return self.cond[layer].float(), self.uncond[layer].float()


def batches(count: int, batch: int, begun: Sequence[Part]) -> Iterator[tuple[slice, Part | None]]:
    """Yield the rows of each batch of `count` prompts, with the part of it that is done already.

    A batch ends where one that started at 0 would, so that it makes no difference how many prompts
    an interrupted run recorded at once.
    """
    start = 0
    for part in begun:
        yield slice(start, start + len(part.x)), part
        start += len(part.x)
    while start < count:
        end = min(count, (start // batch + 1) * batch)
        yield slice(start, end), None
        start = end


def record(
    denoiser: Denoiser,
    cond: Conditioning,
    uncond: Conditioning,
    settings: SamplerSettings,
    size: tuple[int, int],
    seed: int,
    batch: int = GROUP,
    team: Workers = SINGLE,
    begun: Recording | None = None,
) -> Iterator[Recording]:
    """Denoise once from every prompt; yields the growing recording after each UNet call.

    A team's processes take turns at the batches; each ends with all of them. `begun`: what a run
    before this one had recorded, which is left as it is.
    """
    modules = cross_attention_modules(denoiser)
    recording, guided = Recording(), settings.cfg != 1.0
    noises = [seeds.recording_noise(seed, i) for i in range(len(cond))]
    noise = initial_noise(noises, size)
    before = begun.parts if begun and team.size == 1 else ()
    for number, (rows, part) in enumerate(batches(len(cond), batch, before)):
        each = settings.passes(len(noise[rows])) // settings.steps
        if not team.mine(number):
            recording.passes += each * settings.steps
            continue
        group = rows.start - rows.start % GROUP
        part = part.again() if part else Part(noise[rows], seeds.recorded_positions(seed, group))
        recording.passes += each * part.done
        recording.parts.append(part)
        under, own = cond.select(rows), noises[rows]
        steps = sample(denoiser, part.x, under, uncond, settings, own, part.done)

        def see(layer: str, x: Tensor, part: Part = part) -> None:
            part.see(layer, x, guided)

        for _ in range(settings.steps - part.done):
            part.latents.append(part.x)
            with watch_inputs(modules, see):  # not while the host has the floor: it may draw
                x = next(steps)[1].cpu()
            part.stepped(x)
            recording.passes += each
            yield recording
    parts = recording.parts
    recording.latents = _together([torch.stack(part.latents, 1) for part in parts], team)
    for name in modules:  # one by one, for what is exchanged is in memory more than once
        recording.cond[name] = _together([torch.cat(p.cond[name], 1) for p in parts], team)
        recording.uncond[name] = _together([torch.cat(p.uncond[name], 1) for p in parts], team)
    recording.timesteps = torch.tensor(settings.grid(denoiser))
    recording.parts = []
    if len(before) == len(parts):
        yield recording  # nothing may have been left to do, but whoever iterates needs it


def _together(mine: list[Tensor], team: Workers) -> Tensor:
    return torch.cat(team.interleave(mine))


@dataclass(frozen=True)
class Plan:
    """Which prompts are recorded (indices), and whose recorded row each prompt meets (p,)."""

    recorded: list[int]
    rows: Tensor


def plan_recording(targets: int, preserve: int, room: int) -> Plan:
    """Spend room for `room` prompts on targets, their anchors and what must stay, in this order.

    A layer answers any state under any context: a prompt without a trajectory of its own borrows
    the states of one of its kind. Raises SpecError when there is no room for one of each.
    """
    kinds = [targets, targets, preserve]
    if room < sum(count > 0 for count in kinds):
        told = f"leaves room for {room} prompts"
        raise SpecError(told, field="passes", remedy="raise it, or lower {trajectory_steps}")
    shares = list(kinds)
    if sum(kinds) > room:
        erased = min(targets, max(1, room // 4))
        shares = [erased, erased, min(preserve, room - 2 * erased)]
    recorded: list[int] = []
    rows: list[int] = []
    for count, some in zip(kinds, shares, strict=True):
        start = len(rows)
        rows += [len(recorded) + i * some // count for i in range(count)]
        recorded += [start + (2 * j + 1) * count // (2 * some) for j in range(some)]
    return Plan(recorded, torch.tensor(rows))


def sampler_of(spec: UnlearnSpec) -> SamplerSettings:
    """Return how a spec's trajectories are sampled."""
    return sampled(SamplerSettings(spec.trajectory_steps, spec.cfg), spec.sampling)


def plan_of(spec: UnlearnSpec, prompts: PromptSet) -> Plan:
    """Choose which prompts are recorded; raises SpecError when `passes` leaves no room."""
    room = spec.passes // sampler_of(spec).passes(1)
    return plan_recording(len(prompts.targets), len(prompts.preserve), room)


def recorded(
    model: LentModel,
    spec: UnlearnSpec,
    plan: Plan,
    cond: Conditioning,
    uncond: Conditioning,
    team: Workers,
    begun: Recording | None = None,
) -> Iterator[Recording]:
    """Record what the plan says, or the rest of it; yields the growing recording."""
    chosen = cond.select(torch.tensor(plan.recorded).to(cond.context.device))
    yield from record(
        model.denoiser, chosen, uncond, sampler_of(spec), model.latent_size, spec.seed,
        model.at_once, team, begun,
    )  # fmt: skip
