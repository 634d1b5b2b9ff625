"""The global engine's problem: the concept effect in the noise prediction of the whole UNet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import seeds
from ..errors import SpecError
from ..models.contract import Conditioning, Denoiser, compute_dtype, device_of
from ..models.parameters import exchanged
from ..models.recompute import recomputed
from ..spec import UnlearnSpec
from .objective import distance, pushed
from .prompt_pairs import Pairs
from .theta_layout import Layout

BATCH = 8
NOT_TOGETHER = "an exact Hessian and checkpointing do not go together"


@dataclass
class Cost:
    """UNet passes, one sample each."""

    forward: int = 0
    backward: int = 0


class Differentiable:
    """A UNet as a function of some of its weights."""

    def __init__(self, denoiser: Denoiser, weights: Mapping[str, tuple[Tensor, int]]) -> None:
        """Take float32 weights by ldm name, each with the number of heads that share its rows."""
        self.denoiser = denoiser
        self.keys = list(weights)
        tensors, heads = zip(*weights.values(), strict=True)
        self.layout = Layout.of(tensors, heads)
        self.base = self.layout.join(tensors)  # theta_0
        self.cost = Cost()
        # Inference tensors, which hosts hold, cannot be saved for backward; clones can.
        named = denoiser.module.named_parameters()
        self._clones = {name: p.detach().clone() for name, p in named if p.is_inference()}
        self._dtype = compute_dtype(denoiser.module)

    def predict(self, theta: Tensor, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict with theta in place of the UNet's own weights, with gradients."""
        self.cost.forward += len(x)
        self.cost.backward += len(x) if torch.is_grad_enabled() else 0
        names = [self.denoiser.parameter_name(key) for key in self.keys]
        parts = self.layout.parts(theta)
        moved = {n: w.to(self._dtype) for n, w in zip(names, parts, strict=True)}
        with exchanged(self.denoiser.module, {**self._clones, **moved}):
            return self.denoiser(x, t, cond).float()

    @torch.no_grad()
    def frozen(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict with theta_0."""
        self.cost.forward += len(x)
        return self.denoiser(x, t, cond).float()


class EndToEndProblem(Differentiable):
    """What the UNet predicts on recorded latents, as a function of all its q/k/v weights."""

    def __init__(
        self,
        denoiser: Denoiser,
        weights: Mapping[str, tuple[Tensor, int]],
        timesteps: Tensor,
        erase: Pairs[Conditioning],
        keep: Pairs[Conditioning],
        spec: UnlearnSpec,
    ) -> None:
        super().__init__(denoiser, weights)
        self.spec = spec
        self.timesteps, self.erase, self.keep = timesteps, erase, keep
        self.scale = self._scale()

    def effect(self, theta: Tensor, step: int) -> Tensor:
        """E: the distance from the prediction to the anchor's, about 1 at theta_0."""
        return self._measure(self.erase, theta, self.sample(step))

    def harm(self, theta: Tensor, step: int) -> Tensor:
        """Measure the distance to theta_0's own predictions, in the same units."""
        return self._measure(self.keep, theta, self.sample(step, seeds.HARM))

    def sample(self, step: int, which: int = seeds.EFFECT) -> int:
        """Seed what a step looks at."""
        return seeds.sample(self.spec.seed, step, which)

    def draw(self, pairs: Pairs[Conditioning], seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Choose prompts (b,), their latents (b, 4, h, w) and timesteps (b,)."""
        generator = seeds.generator(seed)
        count = len(pairs.rows)
        some = torch.randperm(count, generator=generator)[:BATCH]
        when = torch.randint(len(self.timesteps), (len(some),), generator=generator)
        device = device_of(self.denoiser)
        x = pairs.x[pairs.rows[some], when].to(device)
        return some, x, self.timesteps[when].to(device)

    def _measure(self, pairs: Pairs[Conditioning], theta: Tensor, sample: int) -> Tensor:
        some, x, t = self.draw(pairs, sample)
        now = pairs.now.select(some.to(pairs.now.context.device))
        goal = self._goal(pairs, some, x, t)
        return distance(self.predict(theta, x, t, now), goal, self.scale)

    @torch.no_grad()
    def _goal(self, pairs: Pairs[Conditioning], some: Tensor, x: Tensor, t: Tensor) -> Tensor:
        there = some.to(pairs.now.context.device)
        goal = self.frozen(x, t, (pairs.now if pairs.goal is None else pairs.goal).select(there))
        push = torch.full((len(some),), self.spec.eta)
        if pairs.push is not None:
            push = push * pairs.push[some]
        if pairs is not self.erase or not push.any():
            return goal
        push = push.view(-1, 1, 1, 1).to(goal.device)
        return pushed(goal, self.frozen(x, t, pairs.now.select(there)), push)

    @torch.no_grad()
    def _scale(self, batches: int = 4) -> Tensor:
        sizes = []
        for number in range(batches):
            some, x, t = self.draw(self.erase, seeds.before_training(self.spec.seed, number))
            now = self.erase.now.select(some.to(self.erase.now.context.device))
            before = self.frozen(x, t, now)
            sizes.append(distance(before, self._goal(self.erase, some, x, t), 1.0))
        return torch.stack(sizes).mean().clamp(min=1e-12)


@contextlib.contextmanager
def differentiable(denoiser: Denoiser, twice: bool, checkpointing: bool) -> Iterator[None]:
    """Make the UNet fit for gradients: second ones, or in little memory.

    twice: fused attention has no second derivative, so the plain kernel is forced;
    checkpointing: transformer blocks recompute their activations.
    """
    if twice and checkpointing:
        raise SpecError(NOT_TOGETHER, remedy="leave the spec's ablation.hessian at auto")
    with contextlib.ExitStack() as stack:
        if twice:
            stack.enter_context(_plain_attention())
        if checkpointing:
            blocks = [m for m in denoiser.module.modules() if hasattr(m, "attn2")]
            stack.enter_context(recomputed(blocks))
        yield


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError as error:
        raise SpecError(
            "the global engine's exact Hessian needs torch 2.3 or newer",
            remedy="leave the spec's ablation.hessian at auto",
        ) from error
    with sdpa_kernel(SDPBackend.MATH):
        yield
