"""Robust by training: what shows the concept is denoised to something else, whatever is asked.

What robust mode was before scrubbing; it is kept to be compared with.

Erasing a prompt leaves the knowledge of how the concept looks, and an attacker finds another way
to ask for it: a learned token reaches what a word no longer does. Here every weight of the UNet
takes part. On noised pictures x_t of the concept the UNet learns to see the picture y_0 that the
same noise gives under the anchor,

    E = mean min(SNR_t, 5) || x0(x_t, t, c; theta) - y_0 ||^2 / E(theta_0),

under the concept's prompts c and, once the noise leaves something to recognise, under others, too:
the anchor's, random ones and none. Every second x_t is of y_0 itself: a picture that was asked for
as the concept and has turned away from it must not turn back. Relabelling is SalUn's idea (arXiv
2310.12508), min-SNR weighting arXiv 2303.09556; that it does not hang on the prompt is ours.

Before that, weights that matter to the concept's pictures and little to others are dampened:
Selective Synaptic Dampening (Foster et al. 2023, arXiv 2308.07707). Training then repairs what this
did to the rest, and starts where the concept's own features are gone instead of merely unasked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trust_engine import seeds
from trust_engine.models.contract import Conditioning, Denoiser, device_of, stack
from trust_engine.models.precision import float32_default
from trust_engine.models.sampler import SamplerSettings, initial_noise, sample, sampled
from trust_engine.prompts.concept import PromptSet, build_prompts
from trust_engine.spec import UnlearnSpec
from trust_engine.unlearn.end_to_end import Differentiable
from trust_engine.unlearn.objective import distance
from trust_engine.unlearn.trainer import Metrics, SelectiveTrainer

from .common import Task, Weights

STEPS = 0.8  # of the spec's, for these take much longer
RATE = 0.12  # of the spec's: every weight moves, not one in thirty
BUDGET = 0.3  # share of all weights that may change
PASSES = 10  # times the spec's, to draw with
DRAWING_STEPS = 12
BATCH = 12  # pictures of either kind a step
SNR_CAP = 5.0
TINY = 1e-30  # instead of dividing by a gradient that is zero
SEEN = 750  # timesteps below it show what is drawn, whatever the prompt
EARLIEST = 20  # below it there is no noise to speak of
UNCOND, OTHERS, ANCHORS = 0.15, 0.15, 0.1  # of them meet no, another, the anchor's prompt
SCALED = 8  # batches that tell how large E is at the start
STANDS_OUT = 4.0  # Fisher information on the concept over that on the rest, to be dampened
MEASURED, MEASURED_BATCH = 40, 4  # batches of either that tell the Fisher information


def pictured(prompts: PromptSet, spec: UnlearnSpec) -> list[int]:
    """Choose the prompts to draw, by their number among targets, anchors, kept, and "" at last.

    A quarter shows the concept, as many its anchor, the rest what must stay; `erased_of` knows it.
    """
    room = max(4, PASSES * spec.passes // settings(spec).passes(1))
    n, kept = len(prompts.targets), len(prompts.preserve) or 1
    erased = [i % n for i in range(erased_of(room))]
    count = room - 2 * len(erased)
    stay = (2 * n + i * kept // count for i in range(count))
    return [*erased, *(n + i for i in erased), *stay]


def erased_of(pictures: int) -> int:
    """Tell how many of the pictures show the concept: the first ones."""
    return pictures // 4


def settings(spec: UnlearnSpec) -> SamplerSettings:
    """Return how the pictures are drawn."""
    return sampled(SamplerSettings(DRAWING_STEPS, spec.cfg), spec.sampling)


def plan_of(spec: UnlearnSpec) -> UnlearnSpec:
    """Set aside what is done another way: a shrinking mask over all weights, and no penalty."""
    return replace(
        spec,
        engine="global",
        saliency="noise",
        objective="none",
        ablation=replace(spec.ablation, selection="neurons", granularity="entry"),
        schedule="shrinking",
        refresh=5,
        steps=max(1, round(STEPS * spec.steps)),
        rate=RATE * spec.rate,
        budget=max(BUDGET, spec.budget),
    )


def draw(
    denoiser: Denoiser,
    cond: Conditioning,
    uncond: Conditioning,
    chosen: list[int],
    spec: UnlearnSpec,
    size: tuple[int, int],
    batch: int,
) -> Tensor:
    """Draw the chosen prompts, (pictures, 4, h, w); a concept's and its anchor's from one noise."""
    how, everything, finished = settings(spec), stack([cond, uncond]), []
    erased = erased_of(len(chosen))
    numbers = [i % erased if i < 2 * erased else i for i in range(len(chosen))]
    noises = [seeds.recording_noise(spec.seed, i) for i in numbers]
    for start in range(0, len(chosen), batch):
        rows, own = chosen[start : start + batch], noises[start : start + batch]
        under = everything.select(torch.tensor(rows, device=cond.context.device))
        *_, (_, x) = sample(denoiser, initial_noise(own, size), under, uncond, how, own)
        finished.append(x.cpu())
    return torch.cat(finished)


@dataclass(frozen=True)
class Pictures:
    """Latents (n, 4, h, w) and the prompt (n,) that each was drawn from; goal: what to see."""

    x0: Tensor
    prompt: Tensor
    goal: Tensor | None = None


class RobustProblem(Differentiable):
    """What the UNet makes of noised pictures, as a function of all its weights."""

    def __init__(
        self,
        denoiser: Denoiser,
        weights: Mapping[str, tuple[Tensor, int]],
        pictures: Tensor,
        chosen: list[int],
        cond: Conditioning,
        uncond: Conditioning,
        targets: int,
        spec: UnlearnSpec,
    ) -> None:
        """Take pictures (n, 4, h, w) of the chosen rows of cond, of which `targets` are erased."""
        super().__init__(denoiser, weights)
        self.conditions, self.targets, self.seed = stack([cond, uncond]), targets, spec.seed
        self.empty = len(cond)
        rows, erased = torch.tensor(chosen), erased_of(len(chosen))
        anchors = pictures[erased : 2 * erased]
        self.concept = Pictures(pictures[:erased], rows[:erased])
        # An anchor's picture meets the concept's prompt, too: there it must not turn back.
        self.erased = Pictures(
            pictures[: 2 * erased], rows[:erased].repeat(2), torch.cat([anchors, anchors])
        )
        self.kept = Pictures(pictures[2 * erased :], rows[2 * erased :])
        with torch.no_grad():
            self.scale = torch.tensor(1.0)
            found = [self.effect(self.base, -1 - i) for i in range(SCALED)]
            self.scale = torch.stack(found).mean().clamp(min=1e-12)

    def effect(self, theta: Tensor, step: int) -> Tensor:
        """E: how far the noised concept is from being seen as its anchor, about 1 at theta_0."""
        generator = seeds.generator(seeds.sample(self.seed, step, seeds.EFFECT))
        x, t, some, _ = self._noised(self.erased, EARLIEST, generator, BATCH)
        cond = self._under(self.erased.prompt[some], t.cpu(), generator)
        assert self.erased.goal is not None
        goal = self.erased.goal[some].to(x.device)
        schedule = self.denoiser.schedule
        a = schedule.alphas.to(x.device, torch.float32)[t]
        weight = (a / (1 - a)).clamp(max=SNR_CAP).sqrt().view(-1, 1, 1, 1)
        seen, _ = schedule.split(x, t, self.predict(theta, x, t, cond))
        return distance(weight * seen, weight * goal, self.scale)

    def harm(self, theta: Tensor, step: int) -> Tensor:
        """Measure the distance to theta_0's predictions on what must stay, in the same units."""
        generator = seeds.generator(seeds.sample(self.seed, step, seeds.HARM))
        x, t, some, _ = self._noised(self.kept, 0, generator, BATCH)
        blank = torch.rand(len(some), generator=generator) < UNCOND
        cond = self._look_up(self.kept.prompt[some].masked_fill(blank, self.empty))
        return distance(self.predict(theta, x, t, cond), self.frozen(x, t, cond), self.scale)

    def fisher(self, pictures: Pictures) -> Tensor:
        """Return each weight's mean squared gradient of the denoising loss on pictures."""
        generator = seeds.generator(seeds.fisher(self.seed))
        found = torch.zeros_like(self.base)
        for _ in range(MEASURED):
            x, t, some, noise = self._noised(pictures, EARLIEST, generator, MEASURED_BATCH)
            theta = self.base.clone().requires_grad_()
            seen = self.predict(theta, x, t, self._look_up(pictures.prompt[some]))
            _, eps = self.denoiser.schedule.split(x, t, seen)
            (g,) = torch.autograd.grad((eps - noise).square().mean(), theta)
            found.addcmul_(g, g, value=1 / MEASURED)
        return found

    def dampened(self) -> Tensor:
        """Return by how much to shrink weights that tell the concept from the rest (SSD, eq. 6)."""
        own, rest = self.fisher(self.concept), self.fisher(self.kept)
        less = (rest / own.clamp(min=TINY) - 1) * self.base
        return torch.where(own > STANDS_OUT * rest, less, 0.0)

    def _noised(
        self, pictures: Pictures, earliest: int, generator: torch.Generator, count: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw pictures and noise them: x (b, 4, h, w), t (b,), which they are (b,), the noise."""
        some = torch.randint(len(pictures.x0), (count,), generator=generator)
        x0, place = pictures.x0[some], device_of(self.denoiser)
        t = torch.randint(earliest, 1000, (count,), generator=generator).to(place)
        noise = torch.randn(x0.shape, generator=generator).to(place)
        return self.denoiser.schedule.noised(x0.to(place), t, noise), t, some, noise

    def _under(self, own: Tensor, t: Tensor, generator: torch.Generator) -> Conditioning:
        """Choose the prompts that noised pictures of the concept meet."""
        chance = torch.rand(len(own), generator=generator)
        other = torch.randint(2 * self.targets, self.empty + 1, (len(own),), generator=generator)
        limits = torch.tensor([UNCOND, UNCOND + OTHERS, UNCOND + OTHERS + ANCHORS])
        empty = torch.full_like(own, self.empty)
        options = torch.stack([empty, other, own + self.targets, own])
        rows = options.gather(0, torch.bucketize(chance, limits, right=True)[None])[0]
        return self._look_up(torch.where(t < SEEN, rows, own))

    def _look_up(self, rows: Tensor) -> Conditioning:
        return self.conditions.select(rows.to(self.conditions.context.device))


class Hardening(SelectiveTrainer):
    """Forgetting that starts from dampened weights."""

    problem: RobustProblem

    def _step(self) -> Metrics:
        if not self.done:  # here and not at the start, so that a resumed run does not pay again
            self.offset.copy_(self.problem.dampened())
        return super()._step()


def every_weight(denoiser: Denoiser) -> dict[str, tuple[Tensor, int]]:
    """Copy the UNet's matrices and kernels in float32, by ldm name, with one head each."""
    named = denoiser.module.named_parameters()
    return {
        denoiser.checkpoint_key(name): (p.detach().to(torch.float32, copy=True), 1)
        for name, p in named
        if p.ndim >= 2
    }


def problem_of(task: Task, plan: UnlearnSpec) -> RobustProblem:
    """Draw what a plan is trained on."""
    model, concept = task.model, task.concept
    prompts = build_prompts(
        [concept], model.encoder, model.vocabulary, model.styles, named=True, beside=True
    )
    cond, uncond = task.encode(prompts.texts), task.encode([""])
    chosen, batch = pictured(prompts, plan), model.lend().at_once
    drawn = draw(model.denoiser, cond, uncond, chosen, plan, model.latent_size, batch)
    weights = every_weight(model.denoiser)
    count = len(prompts.targets)
    return RobustProblem(model.denoiser, weights, drawn, chosen, cond, uncond, count, plan)


def erase(task: Task, changes: Mapping[str, Any]) -> Weights:
    """Train every weight of the UNet; changes: of the engine's spec."""
    plan = plan_of(UnlearnSpec((task.concept,), seed=task.seed, **changes))
    with float32_default(), torch.enable_grad():
        problem = problem_of(task, plan)
        training = Hardening(problem, plan)
        for _ in training:
            pass
    theta = problem.layout.parts(training.optimiser.theta().detach())
    names = map(task.model.denoiser.parameter_name, problem.keys)
    return dict(zip(names, theta, strict=True))
