"""Scrubbing: take directions that only the concept's pictures have out of the layers' inputs.

What an attacker can bring back is what the inner layers still know of how the concept looks. For a
layer that sees x (positions of noised pictures), with second moments C_c on pictures of the concept
and C_r on pictures of everything else,

    C_r + eps tr(C_r) / d I = L L^T        L^-1 C_c L^-T = U diag(lambda) U^T
    T = I - L U_k diag(s) U_k^T L^-1       U_k: lambda > tau
    W' = W T                               (a convolution: T on its input channels)

In whitened coordinates the rest has unit variance in every direction, so that one with a large
lambda costs the rest least for what it does to the concept. s = 1 removes it (hard);
s = 1 - lambda^-1/2 shrinks it to the rest's energy (soft). Layers are taken block by block in the
order in which they work, with moments measured on the network as it is by then: later layers have
less left to do. Forward passes and linear algebra alone; each change has rank k. Kin: LEACE (arXiv
2306.03819), for means and language models. That it is done on the image side of a UNet, against
attackers, is ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import seeds
from ..errors import SpecError
from ..models.contract import Conditioning, Denoiser, device_of
from ..models.parameters import exchanged

EARLIEST, LATEST = 20, 750  # timesteps: noise enough to tell nothing by, and picture enough to see
TEXT_SIDE = (".attn2.to_k.weight", ".attn2.to_v.weight")
NOT_PICTURES = ("time_embed.", "label_emb.", ".emb_layers.")  # fed by the time step and the size


@dataclass(frozen=True)
class ScrubPlan:
    """How much is taken out.

    tau: directions with more than this many times the rest's energy go; eps: of the mean variance,
    added to the rest's before it is divided by; soft: shrink to the rest's energy, or remove;
    batches, batch: noised pictures of either kind that a block is measured on; untold: the share of
    them that meets the empty prompt.
    """

    tau: float = 6.0
    eps: float = 0.02
    soft: bool = True
    batches: int = 12
    batch: int = 12
    untold: float = 0.4

    def __post_init__(self) -> None:
        if self.tau < 1:
            raise SpecError(f"tau is {self.tau:g}; below 1 it takes out what the rest has more of")
        if not 0 < self.eps <= 1:
            raise SpecError(f"eps is {self.eps:g}; it must lie between 0 and 1")


@dataclass(frozen=True)
class Shown:
    """Pictures: latents (n, 4, h, w), and the prompt (n rows of context) each was drawn from."""

    latents: Tensor
    prompts: Conditioning


@dataclass(frozen=True)
class Edit:
    """W' - W = up down, of low rank: up (o, k) or (o, k, kh, kw), down (k, d); d input channels.

    lambdas (k,): how many times the rest's energy the concept had in each direction.
    """

    up: Tensor
    down: Tensor
    lambdas: Tensor

    @property
    def rank(self) -> int:
        """Count the directions."""
        return len(self.lambdas)

    @property
    def offset(self) -> Tensor:
        """Return W' - W, in W's shape."""
        return torch.einsum("ok...,kd->od...", self.up, self.down)


@dataclass(frozen=True)
class ScrubReport:
    """Progress: blocks done of all, UNet passes so far, directions taken out so far."""

    done: int
    total: int
    passes: int
    directions: int


def directions(
    concept: Tensor, rest: Tensor, tau: float, eps: float, soft: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve the generalised eigenproblem of moments (d, d), float64.

    Returns left (d, k), right (k, d) and lambda (k,), the largest first: T = I - left right.
    """
    d = len(rest)
    ridge = eps * rest.diagonal().mean().clamp(min=1e-12)
    whitening = torch.linalg.cholesky(rest + ridge * torch.eye(d, dtype=rest.dtype))
    half = torch.linalg.solve_triangular(whitening, concept, upper=False)
    seen = torch.linalg.solve_triangular(whitening, half.T, upper=False)
    energies, vectors = torch.linalg.eigh((seen + seen.T) / 2)
    some = energies > tau
    energies, vectors = energies[some].flip(0), vectors[:, some].flip(1)
    strength = 1 - energies.rsqrt() if soft else torch.ones_like(energies)
    right = torch.linalg.solve_triangular(whitening.T, vectors, upper=True).T
    return whitening @ vectors * strength, right, energies


def edited(weight: Tensor, left: Tensor, right: Tensor, lambdas: Tensor) -> Edit:
    """Write W T - W as a product of low rank; weight (o, d) or (o, d, kh, kw)."""
    up = -torch.einsum("od...,dk->ok...", weight.double(), left)
    return Edit(up.float(), right.float(), lambdas)


def picture_layers(denoiser: Denoiser) -> dict[str, nn.Module]:
    """List the layers that work on the picture, by the ldm name of their weight.

    Not those on the text side, on the time step, and the first, whose input is the picture itself.
    """
    found: dict[str, nn.Module] = {}
    for name, module in denoiser.module.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        key = denoiser.checkpoint_key(f"{name}.weight")
        beside = key.endswith(TEXT_SIDE) or any(part in f".{key}" for part in NOT_PICTURES)
        if not beside and not key.startswith("input_blocks.0."):
            found[key] = module
    return found


class Moments:
    """The mean of x x^T over the inputs (b, n, d) or (b, d, h, w) of a layer, in float64."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def add(self, x: Tensor) -> None:
        """Take a batch's positions into account."""
        rows = x.detach().float()
        rows = rows.movedim(1, -1) if rows.ndim == 4 else rows
        rows = rows.reshape(-1, rows.shape[-1])
        product = (rows.T @ rows).double().cpu()
        self.total = product if self.total is None else self.total + product
        self.count += len(rows)

    @property
    def mean(self) -> Tensor:
        """Return the moments (d, d)."""
        if self.total is None:
            raise SpecError("a layer was never reached while its inputs were measured")
        return self.total / self.count


class _Enough(Exception):
    """Raised out of a pass once the layers that are measured have had their turn."""


class Scrubbing:
    """One scrubbing: iterate over it for progress, then read `edits`.

    The denoiser's weights are only read: those that were scrubbed before stand in for them during a
    pass. What it does is decided by its inputs and the seed alone.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        concept: Shown,
        rest: Shown,
        uncond: Conditioning,
        plan: ScrubPlan | None = None,
        seed: int = 0,
    ) -> None:
        self.denoiser, self.concept, self.rest, self.uncond = denoiser, concept, rest, uncond
        self.plan, self.seed = plan or ScrubPlan(), seed
        self.edits: dict[str, Edit] = {}
        self.weights: dict[str, Tensor] = {}
        """The scrubbed weights by parameter name, in float32."""
        self.passes = 0

    @torch.inference_mode(False)
    @torch.no_grad()
    def __iter__(self) -> Iterator[ScrubReport]:
        layers = picture_layers(self.denoiser)
        blocks = self._in_order(layers)
        for number, block in enumerate(blocks):
            here = {key: layers[key] for key in block}
            concept = self._moments(here, self.concept, seeds.sample(self.seed, number))
            rest = self._moments(here, self.rest, seeds.sample(self.seed, number, seeds.HARM))
            for key in here:
                found = directions(
                    concept[key], rest[key], self.plan.tau, self.plan.eps, self.plan.soft
                )
                if len(found[2]):
                    self._take(key, found)
            taken = sum(edit.rank for edit in self.edits.values())
            yield ScrubReport(number + 1, len(blocks), self.passes, taken)

    def _take(self, key: str, found: tuple[Tensor, Tensor, Tensor]) -> None:
        """Scrub one layer, for all passes from now on."""
        name = self.denoiser.parameter_name(key)
        weight = self.denoiser.module.get_parameter(name).detach()
        self.edits[key] = edit = edited(weight.cpu(), *found)
        self.weights[name] = weight.float() + edit.offset.to(weight.device)

    def _in_order(self, layers: Mapping[str, nn.Module]) -> list[list[str]]:
        """Put layers into blocks (a resnet, a transformer, a sampling layer) as they are called."""
        order: list[str] = []
        with contextlib.ExitStack() as stack:
            for key, layer in layers.items():
                handle = layer.register_forward_pre_hook(lambda _m, _a, key=key: order.append(key))
                stack.callback(handle.remove)
            self._pass(self.rest, slice(0, 1), seeds.generator(seeds.scrubbed_order(self.seed)))
        blocks: dict[str, list[str]] = {}
        for key in dict.fromkeys(order):
            blocks.setdefault(_block_of(key), []).append(key)
        return list(blocks.values())

    def _moments(
        self, layers: Mapping[str, nn.Module], shown: Shown, seed: int
    ) -> dict[str, Tensor]:
        """Measure the inputs of a block's layers on noised pictures."""
        found = {key: Moments() for key in layers}
        generator = seeds.generator(seed)
        with contextlib.ExitStack() as stack:
            left = len(layers)

            def see(key: str, x: Tensor) -> None:
                nonlocal left
                found[key].add(x)
                left -= 1

            def stop(*_: object) -> None:
                if left <= 0:
                    raise _Enough

            for key, layer in layers.items():
                seeing = layer.register_forward_pre_hook(
                    lambda _m, args, key=key: see(key, args[0])
                )
                stack.callback(seeing.remove)
                stack.callback(layer.register_forward_hook(stop).remove)
            for _ in range(self.plan.batches):
                left = len(layers)
                some = torch.randint(len(shown.latents), (self.plan.batch,), generator=generator)
                with contextlib.suppress(_Enough):
                    self._pass(shown, some, generator)
        return {key: moments.mean for key, moments in found.items()}

    def _pass(self, shown: Shown, some: Tensor | slice, generator: torch.Generator) -> None:
        """Noise some pictures and let the network, as it is by now, see them."""
        place = device_of(self.denoiser)
        x0 = shown.latents[some]
        t = torch.randint(EARLIEST, LATEST, (len(x0),), generator=generator).to(place)
        noise = torch.randn(x0.shape, generator=generator).to(place)
        blank = torch.rand(len(x0), generator=generator) < self.plan.untold
        cond = _replaced(shown.prompts.select(some), self.uncond, blank)
        x = self.denoiser.schedule.noised(x0.to(place), t, noise)
        self.passes += len(x0)
        dtype = next(self.denoiser.module.parameters()).dtype
        theta = {name: weight.to(dtype) for name, weight in self.weights.items()}
        with exchanged(self.denoiser.module, theta):
            self.denoiser(x, t, cond)


def _block_of(key: str) -> str:
    """Name the block that a layer belongs to: input_blocks.4.1, middle_block.0, out."""
    parts = key.split(".")
    return ".".join(parts[: 3 if parts[0].endswith("_blocks") else 2])


def _replaced(cond: Conditioning, uncond: Conditioning, blank: Tensor) -> Conditioning:
    """Put the empty prompt where blank (b,) says so."""
    rows = blank.to(cond.context.device).view(-1, 1, 1)
    context = torch.where(rows, uncond.context.to(cond.context.dtype), cond.context)
    if cond.vector is None or uncond.vector is None:
        return Conditioning(context, cond.vector)
    return Conditioning(context, torch.where(rows[:, 0], uncond.vector, cond.vector))
