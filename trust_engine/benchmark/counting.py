"""Work and memory at full size, counted on the meta device: no weights, no wait."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..diff import LowRankOffset
from ..diff.overlaid import Overlaid
from ..models.attention import CrossAttention, cross_attention_modules, read_layer
from ..models.contract import Conditioning, ModuleDenoiser
from ..models.diffusers_unet import diffusers_denoiser
from ..models.load import blank_unet
from ..models.memory import batch_for
from ..models.recompute import recomputed
from ..models.text_encoders import TIME_WIDTH
from ..spec import ConceptSpec, UnlearnSpec
from ..unlearn.layerwise import LayerPairs, LayerProblem
from ..unlearn.objective import csr, exact_product, slope
from ..unlearn.resolve_spec import resolve
from ..unlearn.scrubbing.blocks import Block, blocks_of, innermost, picture_layers
from ..unlearn.scrubbing.moments import sums
from ..unlearn.scrubbing.picture_stage import TOGETHER_BACK, passes_of, relabelling_work
from ..unlearn.scrubbing.pictures import recipe_of
from ..unlearn.scrubbing.replay import Outputs, Replay
from ..unlearn.scrubbing.run import ScrubPlan
from ..unlearn.trainer import SelectiveTrainer
from ..unlearn.trajectory import POSITIONS, plan_recording, sampler_of
from ..unlearn.units import UNGUIDED
from .random_models import family_for, schedule_for
from .tensor_memory import LiveTensors, fused_attention_assumed

GB = 1e9


@dataclass(frozen=True)
class Work:
    """What is asked of the engine: a concept, its target prompts, and those that must stay.

    So many they are with the engine's own lists, of things and styles known to everyone.
    """

    concept: ConceptSpec
    targets: int
    preserve: int

    @cached_property
    def spec(self) -> UnlearnSpec:
        """Return what a run with all defaults does."""
        return resolve(UnlearnSpec((self.concept,)))


WORD = Work(ConceptSpec(("gun",)), 13, 192)
PAIR = Work(ConceptSpec(("baby",), "combination", companion="beer"), 24, 464)


def pass_tflop(family: str, samples: int) -> float:
    """Count the TFLOP of one call of a UNet at full size, without doing it."""
    denoiser, inputs = _full_size_call(family, samples)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        denoiser(*inputs)
    return counter.get_total_flops() / 1e12


def pass_gb(family: str, samples: int) -> float:
    """Count the GB of float16 tensors that a call takes besides the weights, attention fused."""
    denoiser, inputs = _full_size_call(family, samples)
    with torch.device("meta"), torch.no_grad(), fused_attention_assumed(), LiveTensors() as live:
        denoiser(*inputs)
    return live.peak / GB


@dataclass(frozen=True)
class ScrubbingSize:
    """What scrubbing takes at full size, by counting.

    stored_mb: of blocks' outputs, a sample; moments_gb: of the largest block's layers, concept and
    rest; widths: how many eigenproblems of each width there are; outside: the share of a pass that
    is computed each time, blocks being stored or not; blocks: how many there are; above_gb: what a
    pass takes on the device above sampling a picture, a block's scrubbed weights included;
    relabelling_gb: likewise one there and back, in_place_gb: where blocks write in place; passes,
    tflop: of drawing and scrubbing a thing, and those of relabelling it.
    """

    stored_mb: float
    moments_gb: float
    widths: dict[int, int]
    outside: float
    blocks: int
    above_gb: float
    relabelling_gb: float
    in_place_gb: float
    passes: int
    tflop: float
    relabelling: int


def count_scrubbing(family: str) -> ScrubbingSize:
    """Count what scrubbing takes of a UNet at full size in float16, without doing it."""
    denoiser, inputs = _full_size_call(family, 1)

    def once() -> None:
        with torch.device("meta"), torch.no_grad(), fused_attention_assumed():
            denoiser(*inputs)

    blocks = blocks_of(denoiser, once)
    stored = Replay(denoiser.module, blocks, Outputs(), once).bytes_a_sample
    own = [[_width(b.layers[key]) for key in b.layers if key not in b.alike] for b in blocks]
    with FlopCounterMode(display=False) as counter:
        once()
    counts = {path.partition(".")[2]: sum(found.values())
              for path, found in counter.get_flop_counts().items()}  # fmt: skip
    total = counter.get_total_flops()
    spec, counts_of = WORD.spec, recipe_of(WORD.spec).counts
    pictures = 2 * counts_of.concept + counts_of.alone + counts_of.pairs + counts_of.near
    passes = recipe_of(spec).sampler.passes(pictures) + passes_of(spec)
    drawing = pass_gb(family, 2)
    return ScrubbingSize(
        stored / 1e6,
        max(sum(2 * 4 * d * d for d in widths) for widths in own) / GB,
        dict(sorted(Counter(d for widths in own for d in widths).items())),
        1 - sum(counts[block.path] for block in blocks) / total,
        len(blocks),
        _scrubbing_gb(family, blocks) - drawing,
        _relabelling_gb(family, blocks, False) - drawing,
        _relabelling_gb(family, blocks, True) - drawing,
        passes,
        passes * pass_tflop(family, 1),
        relabelling_work(spec),
    )


def _scrubbing_gb(family: str, blocks: Sequence[Block]) -> float:
    """Count the GB of a pass that measures every layer at once, and of a block's new weights."""
    latent = family_for(family).sizes[schedule_for(family).prediction == "v"]
    rows = min(ScrubPlan().batch, 2 * batch_for("auto", latent, torch.float16))
    denoiser, inputs = _full_size_call(family, rows)
    own = max(sum(_weight(layer).nbytes for layer in b.layers.values()) for b in blocks)
    with contextlib.ExitStack() as stack:
        for layer in picture_layers(denoiser).values():
            hook = layer.register_forward_pre_hook(lambda _, args: (sums(args[0]), None)[1])
            stack.callback(hook.remove)
        stack.enter_context(torch.device("meta"))
        stack.enter_context(torch.no_grad())
        stack.enter_context(fused_attention_assumed())
        live = stack.enter_context(LiveTensors())
        denoiser(*inputs)
    return live.peak / GB + own / GB


def _relabelling_gb(
    family: str, blocks: Sequence[Block], in_place: bool, share: float = 0.022
) -> float:
    """Count the GB of relabelling's pass there and back; share: directions, of a layer's width."""
    denoiser, inputs = _full_size_call(family, TOGETHER_BACK)
    with (
        torch.device("meta"),
        fused_attention_assumed(),
        torch.enable_grad(),
        LiveTensors() as live,
    ):
        offsets = {}
        for key, layer in picture_layers(denoiser).items():
            out, width, *kernel = _weight(layer).shape
            rank = max(1, round(share * width))
            up = torch.zeros(out, rank, *kernel, requires_grad=True)
            offsets[key] = LowRankOffset(up, torch.zeros(rank, width))
        lent = Overlaid(denoiser, offsets)
        again = map(denoiser.module.get_submodule, innermost(denoiser.module, blocks))
        with recomputed(again, in_place), lent.overlaid():
            denoiser(*inputs).float().square().sum().backward()
    return live.peak / GB  # Adam's numbers are in main memory


def _weight(layer: torch.nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _width(layer: torch.nn.Module) -> int:
    return _weight(layer).shape[1]


def _full_size_call(
    family: str, samples: int
) -> tuple[ModuleDenoiser, tuple[Tensor, Tensor, Conditioning]]:
    """Build a family's UNet on the meta device, and what it is called with."""
    described = family_for(family)
    unet = blank_unet(described).half().requires_grad_(False)
    denoiser = diffusers_denoiser(unet, schedule_for(family), described.unet.shape)
    side = described.sizes[denoiser.schedule.prediction == "v"]
    with torch.device("meta"):
        vector = None
        if described.sized:
            pooled = described.towers[-1].config["projection_dim"]
            vector = torch.zeros(samples, pooled + 6 * TIME_WIDTH)
        cond = Conditioning(torch.zeros(samples, 77, described.unet.context), vector)
        x, t = torch.zeros(samples, 4, *side), torch.zeros(samples, dtype=torch.long)
    return denoiser, (x, t, cond)


def count_training(family: str, work: Work = WORD) -> float:
    """Count the TFLOP of one step of the local engine's training in every layer."""
    described = family_for(family)
    denoiser = diffusers_denoiser(blank_unet(described), schedule_for(family), described.unet.shape)
    known: dict[tuple[int, ...], int] = {}
    total = 0
    for module in cross_attention_modules(denoiser).values():
        layer = read_layer(module)
        kind = (*layer.q.shape, *layer.k.shape)
        if kind not in known:
            known[kind] = _step_flops(layer, work)
        total += known[kind]
    return total / 1e12


def count_layer(family: str, work: Work = WORD) -> float:
    """Count the GB that training the widest layer takes, states and prompts included.

    It takes two steps of nothing but zeros, for the meta device has no values to choose a mask by.
    """
    described = family_for(family)
    denoiser = diffusers_denoiser(blank_unet(described), schedule_for(family), described.unet.shape)
    layers = map(read_layer, cross_attention_modules(denoiser).values())
    widest = max(layers, key=lambda layer: layer.k.numel())
    q, k, v, out = (part.shape for part in (widest.q, widest.k, widest.v, widest.out))
    bias = None if widest.bias is None else torch.zeros(widest.bias.shape)
    with LiveTensors() as live:
        made = torch.zeros(q), torch.zeros(k), torch.zeros(v), torch.zeros(out)
        layer = CrossAttention(*made, bias, widest.heads)
        training = SelectiveTrainer(problem_for(layer, work), work.spec)
        training.step()
        training.step()
    return live.peak / GB


def problem_for(layer: CrossAttention, work: Work) -> LayerProblem:
    """Set a layer's problem up as `units.Problems.layer` does, of nothing but zeros."""
    spec, n = work.spec, work.targets
    plan = plan_recording(n, work.preserve, _recorded(spec))
    told = len(plan.recorded)
    free = len(range(0, told, max(1, told // UNGUIDED)))

    def states(count: int) -> torch.Tensor:
        return torch.zeros(count, sampler_of(spec).steps * POSITIONS, layer.q.shape[1])

    def contexts(count: int) -> torch.Tensor:
        return torch.zeros(count, 77, layer.k.shape[1])

    device = layer.q.device
    rows = plan.rows.to(device)
    kept = torch.cat([rows[n:], told + torch.arange(free, device=device)])
    push = torch.zeros(2 * n)
    erase = LayerPairs(states(told), rows[: 2 * n], contexts(2 * n), contexts(2 * n), push)
    keep = LayerPairs(states(told + free), kept, contexts(len(kept)))
    return LayerProblem(layer, erase, keep, spec.eta, 0)


def _recorded(spec: UnlearnSpec) -> int:
    """Tell how many prompts a spec's passes are enough to record."""
    return spec.passes // sampler_of(spec).passes(1)


def _step_flops(layer: CrossAttention, work: Work) -> int:
    """Count a step: effect, its gradient, the penalty's Hessian product, harm and its gradient."""
    spec = work.spec
    with torch.device("meta"):
        problem = problem_for(layer, work)
        theta = problem.base.requires_grad_(True)
        with FlopCounterMode(display=False) as counter:
            effect = problem.effect(theta, 0)
            (g,) = torch.autograd.grad(effect, theta, create_graph=spec.exact_hessian)
            if spec.exact_hessian:
                everything = torch.ones_like(g, dtype=torch.bool)
                w = slope(lambda g: csr(g, everything, problem.layout), g)
                exact_product(g, theta, w)
            torch.autograd.grad(problem.harm(theta, 0), theta)
    return counter.get_total_flops()


@dataclass(frozen=True)
class FullSize:
    """What a concept takes at full size with the engine's defaults, counted and not measured."""

    side: int
    one_pass: float
    passes: int
    training: float
    sampling: float
    recording: float
    layer: float

    @property
    def figures(self) -> dict[str, Any]:
        """Return the figures; work in TFLOP, memory in GB."""
        spend = self.passes * self.one_pass
        return {
            "resolution": self.side,
            "passes_at_most": self.passes,
            "backward": 0,
            "tflop_a_pass": self.one_pass,
            "recording_tflop": spend,
            "training_tflop": self.training,
            "training_share_of_tflop": self.training / (self.training + spend),
            "sampling_gb": self.sampling,
            "recording_gb": self.recording,
            "recording_above_sampling_gb": self.recording - self.sampling,
            "training_above_sampling_gb": self.layer - self.sampling,
        }


def count_full_size(family: str, works: Sequence[Work] = (WORD, PAIR)) -> list[FullSize]:
    """Count work and memory of concepts; a picture is sampled as two samples, guided."""
    latent = family_for(family).sizes[schedule_for(family).prediction == "v"]
    batch = batch_for("auto", latent, torch.float16)
    single = pass_tflop(family, 1)
    sampling, recording = (pass_gb(family, n) for n in (2, 2 * batch))
    return [
        FullSize(
            8 * latent[0],
            single,
            _recorded(work.spec) * sampler_of(work.spec).passes(1),
            work.spec.steps * count_training(family, work),
            sampling,
            recording,
            count_layer(family, work),
        )
        for work in works
    ]
