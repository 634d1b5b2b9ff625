"""What attacks have in common: their description, their loss, and how their success is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ...models.contract import Conditioning
from ...models.load import LoadedModel
from ..checks.base import Check, CheckResult
from ..context import AuditContext, Judged, judge, sees_all
from ..drawing import Work
from ..metrics.intervals import Rate
from ..probe_prompts import Probe, concept_shots

TIMES = (100, 1000)  # attackers train on timesteps 100..999: the last ones only polish


@dataclass(frozen=True)
class AttackOutput:
    """What an attack drew: latents (n, 4, h, w), one a judged shot, and prompts for people."""

    latents: Tensor
    prompts: list[str]
    notes: dict[str, Any] = field(default_factory=dict)


Stance = Literal["static", "adaptive"]
Run = Callable[[AuditContext, LoadedModel], Work[AttackOutput]]


@dataclass(frozen=True)
class Attack:
    """One attack.

    stance: "adaptive" is optimised against this very model, "static" without it; needs_text: uses
    the token space; on_untouched: whether running it on the untouched model says anything.
    """

    name: str
    title: str
    stance: Stance
    source: str
    budget: dict[str, Any]
    passes: int
    run: Run
    needs_text: bool = False
    on_untouched: bool = True
    adds_to_plain: bool = False
    """Whether a prompt counts that succeeds without the attack, as UnlearnDiffAtk counts."""


def attack_check(context: AuditContext, attack: Attack, judged: int, reference: bool) -> Check:
    """Run an attack on the edited model and, for reference, on the untouched one."""
    plain = context.settings.passes(judged)
    twice = 1 + (reference and attack.on_untouched)
    budget = {**attack.budget, "judged": judged, "reference": twice == 2}
    bait = int(attack.budget.get("bait", 0))
    passes = twice * (attack.passes + plain) + plain + context.bait_passes(bait)

    def run(context: AuditContext) -> Work[CheckResult]:
        topic, edited = context.topic, context.models["edited"]
        shots = concept_shots(topic, "attack", judged, context.seed)
        before = yield from plain_hits(context, shots)
        strike = yield from attack.run(context, edited)
        looked, floor = verdict(context, edited, shots, strike)
        back = [a or (b and attack.adds_to_plain) for a, b in zip(looked.hits, before, strict=True)]
        figures: dict[str, Any] = {
            "title": attack.title,
            "stance": attack.stance,
            "source": attack.source,
            "budget": budget,
            "asr": Rate.of(back).to_dict(),
            "before_attack": Rate.of(before).to_dict(),
            "floor": None if floor is None else floor.to_dict(),
            "untouched": None,
            "informative": None,
            "notes": strike.notes,
        }
        pictures = {"edited": looked.pictures}
        if twice == 2:
            there = yield from attack.run(context, context.models["untouched"])
            seen, _ = verdict(context, context.models["untouched"], shots, there)
            figures["untouched"] = seen.seen.to_dict()
            figures["informative"] = seen.seen.value >= 0.5
            pictures["untouched"] = seen.pictures
        return CheckResult(figures, pictures)

    return Check(f"attacks.{attack.name}", {**budget, "source": attack.source}, passes, run, True)


def plain_hits(context: AuditContext, shots: Sequence[Probe]) -> Work[list[bool]]:
    """Tell which of the attack's shots show the concept without any attack."""
    from ..context import draw_probes

    def make() -> Work[list[bool]]:
        looked = yield from draw_probes(context, context.models["edited"], shots)
        return looked.hits

    return (yield from context.keep(("plain", len(shots)), make))


def verdict(
    context: AuditContext, model: LoadedModel, shots: Sequence[Probe], strike: AttackOutput
) -> tuple[Judged, Rate | None]:
    """Judge an attack's pictures; the floor is how often things it never saw are "found"."""
    looked, floor = Judged([], [], [], []), []
    named = [
        Probe(s.words, s.scene, s.seed, text, s.wanted)
        for s, text in zip(shots, strike.prompts, strict=True)
    ]
    for start in range(0, len(named), 16):
        pixels = model.decode(strike.latents[start : start + 16])
        judge(context, pixels, named[start : start + 16], looked)
        for label in context.topic.world.control:
            floor += sees_all(context.judge, pixels, [(label,)] * len(pixels))
    return looked, Rate.of(floor) if floor else None


def denoising_loss(
    model: LoadedModel, x0: Tensor, t: Tensor, noise: Tensor, cond: Conditioning
) -> Tensor:
    """Return the model's training loss (b,) on latents x0 (b, 4, h, w) (Ho et al. 2020, eq. 14)."""
    place = model.device
    x0, t, noise = x0.to(place), t.to(place), noise.to(place)
    schedule = model.denoiser.schedule
    output = model.denoiser(schedule.noised(x0, t, noise), t, cond).float()
    goal = noise
    if schedule.prediction == "v":
        a = schedule.alphas.to(place, torch.float32)[t].view(-1, 1, 1, 1)
        goal = a.sqrt() * noise - (1 - a).sqrt() * x0
    return (output - goal).square().flatten(1).mean(1)


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Draw timesteps (count,)."""
    return torch.randint(*TIMES, (count,), generator=generator)
