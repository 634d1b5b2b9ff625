"""What the engines work on: weights that are fine-tuned together, on recorded ground."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..diff import Offset
from ..models.attention import CrossAttention, cross_attention_modules, read_layer
from ..models.contract import Conditioning, Denoiser, device_of, stack
from ..models.parameters import exchanged
from ..prompts.concept import PromptSet
from ..spec import UnlearnSpec
from .end_to_end import Cost, EndToEndProblem
from .layerwise import LayerPairs, LayerProblem
from .prompt_pairs import Pairs
from .saliency import AttentionSaliency, ClipSaliency, NoiseSaliency, Score, Source, averaged
from .trainer import SelectiveTrainer
from .trajectory import Plan, Recording

UNGUIDED = 6  # rows of the empty prompt among what must stay: guidance leans on it


@dataclass
class Unit:
    """Weights that are fine-tuned together: one layer (local), or all of them (global)."""

    name: str
    keys: list[str]
    start: Callable[[], SelectiveTrainer]


def units_of(spec: UnlearnSpec, denoiser: Denoiser) -> int:
    """Count the units that a spec fine-tunes one after the other."""
    return 1 if spec.together else len(cross_attention_modules(denoiser))


@dataclass
class Problems:
    """What both engines stand on: prompts, encoded in their order, and recorded trajectories.

    before: offsets by ldm name that theta_0 already has, of a scrubbing, under which was recorded.
    """

    spec: UnlearnSpec
    denoiser: Denoiser
    prompts: PromptSet
    cond: Conditioning
    uncond: Conditioning
    plan: Plan
    recording: Recording
    score: Score | None = None
    before: Mapping[str, Offset] = field(default_factory=dict)

    @property
    def needs_whole(self) -> bool:
        """Tell whether gradients will pass through the UNet."""
        return self.spec.through_unet

    def paid(self, cost: Cost) -> None:
        """Set the whole UNet's problem up at the cost of a run before this one."""
        self.whole.cost = cost

    @property
    def cost(self) -> Cost:
        """Return the UNet passes that gradients have cost, setting up included."""
        return self.whole.cost if self.needs_whole else Cost()

    def pieces(self) -> Iterator[Unit]:
        """List what is to be fine-tuned, piece by piece."""
        modules = cross_attention_modules(self.denoiser)
        keys = {name: [f"{name}.to_{letter}.weight" for letter in "qkv"] for name in modules}
        if self.spec.engine == "global":
            everything = [key for names in keys.values() for key in names]
            yield Unit(
                "the UNet",
                everything,
                lambda: SelectiveTrainer(self.whole, self.spec, self._source()),
            )
            return
        fixed = self._fixed() if self.needs_whole else {}
        for name in modules:

            def start(name: str = name) -> SelectiveTrainer:
                return SelectiveTrainer(self.layer(name), self.spec, fixed=fixed.get(name))

            yield Unit(name, keys[name], start)

    def layer(self, name: str) -> LayerProblem:
        """Set one layer's problem up."""
        n, guided, unguided = len(self.prompts.targets), *self.recording.states(name)
        cond, uncond = self.cond.context.float().cpu(), self.uncond.context.float().cpu()
        target, anchor, stay = cond[:n], cond[n : 2 * n], cond[n:]
        # The concept is answered as its anchor on states of both trajectories: while the model
        # forgets, what enters a layer moves from the first kind to the second.
        now, goal = torch.cat([target, target]), torch.cat([anchor, anchor])
        push = torch.tensor(self.prompts.push).repeat(2)
        erase = LayerPairs(guided, self.plan.rows[: 2 * n], now, goal, push)
        some = unguided[:: max(1, len(unguided) // UNGUIDED)]
        kept = torch.cat([stay, uncond.expand(len(some), -1, -1)])
        rows = torch.cat([self.plan.rows[n:], len(guided) + torch.arange(len(some))])
        keep = LayerPairs(torch.cat([guided, some]), rows, kept)
        device = device_of(self.denoiser)
        pairs = erase.to(device), keep.to(device)
        return LayerProblem(self._read(name), *pairs, self.spec.eta, self.spec.seed)

    def _read(self, name: str) -> CrossAttention:
        """Read a layer at theta_0."""
        module, standing = self.denoiser.module, dict[str, Tensor]()
        for key, offset in self.before.items():
            if key.startswith(f"{name}."):
                parameter = self.denoiser.parameter_name(key)
                weight = module.get_parameter(parameter).detach().float()
                standing[parameter] = weight + offset.dense(weight.device)
        with exchanged(module, standing):
            return read_layer(cross_attention_modules(self.denoiser)[name])

    @cached_property
    def whole(self) -> EndToEndProblem:
        """Set the whole UNet's problem up, once."""
        n, rows, latents = len(self.prompts.targets), self.plan.rows, self.recording.latents
        target, anchor, stay = (
            self.cond.select(slice(*e)) for e in ((0, n), (n, 2 * n), (n, None))
        )
        push = torch.tensor(self.prompts.push).repeat(2)
        erase = Pairs(
            latents, rows[: 2 * n], stack([target, target]), stack([anchor, anchor]), push
        )
        count = len(self.plan.recorded)
        unguided = torch.arange(0, count, max(1, count // UNGUIDED))
        kept = stack([stay, *[self.uncond] * len(unguided)])
        keep = Pairs(latents, torch.cat([rows[n:], unguided]), kept)
        weights = {}
        for name, module in cross_attention_modules(self.denoiser).items():
            layer = read_layer(module)
            for letter, weight in zip("qkv", (layer.q, layer.k, layer.v), strict=True):
                weights[f"{name}.to_{letter}.weight"] = (weight, layer.heads)
        return EndToEndProblem(
            self.denoiser, weights, self.recording.timesteps, erase, keep, self.spec
        )

    def _source(self) -> Source | None:
        """Choose where the global engine's saliency comes from; None: the effect's gradient."""
        if self.spec.saliency == "noise":
            return None
        if self.spec.saliency == "clip":
            return self.clip_saliency()
        names = cross_attention_modules(self.denoiser)
        return AttentionSaliency([self.layer(name) for name in names])

    def clip_saliency(self) -> ClipSaliency:
        """Set the CLIP score's saliency up."""
        assert self.score is not None  # checked before the run began
        return ClipSaliency(self.whole, self.score, self.prompts.targets)

    def _fixed(self) -> dict[str, Tensor]:
        """Take the whole UNet's saliency once, at theta_0, for the local engine's layers."""
        source = self.clip_saliency() if self.spec.saliency == "clip" else NoiseSaliency(self.whole)
        found = averaged(source, self.whole.base.clone().requires_grad_(True))
        parts = iter(self.whole.layout.split(found))
        names = cross_attention_modules(self.denoiser)
        return {name: torch.cat([next(parts) for _ in "qkv"]) for name in names}
