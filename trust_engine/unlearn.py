"""The main job: concept -> prompts -> recorded states -> layers forget -> diff."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .attention import cross_attention_modules, read_layer
from .concept import PromptSet, build_prompts
from .conditioning import Conditioning, TextEncoder
from .denoiser import Denoiser, device_of
from .diff import SparseOffset, WeightDiff, fingerprint
from .errors import SpecError
from .local import LayerRun, LayerStep, Situation
from .mask import overlap
from .sampler import SamplerSettings
from .spec import UnlearnSpec
from .trajectory import Recording, record


@dataclass(frozen=True)
class LentModel:
    """What a host lends: the UNet, text encoding, latent size (h, w), words worth preserving."""

    denoiser: Denoiser
    encoder: TextEncoder
    latent_size: tuple[int, int]
    vocabulary: Sequence[str] = ()


def check_built(spec: UnlearnSpec) -> None:
    """Raise SpecError for what this release cannot do yet; needs no model."""
    if spec.engine != "local":
        raise SpecError("the global engine is not built yet; use engine local")
    if spec.concept.kind != "single":
        raise SpecError(f"{spec.concept.kind} concepts are not built yet; use --kind single")


@dataclass(frozen=True)
class StepReport:
    """Progress: `done` of `total` units of work, and the layer at work if one is."""

    done: int
    total: int
    stage: str
    passes: int
    layer: LayerStep | None = None


@dataclass
class Unlearning:
    """One run: iterate over it for progress, stop whenever you like, then read `diff`.

    The lent model's weights are only ever read.
    """

    model: LentModel
    spec: UnlearnSpec
    prompts: PromptSet = field(init=False)
    final: dict[str, LayerStep] = field(default_factory=dict)
    neurons: dict[str, dict[str, Any]] = field(default_factory=dict)
    passes: int = 0
    _offsets: dict[str, SparseOffset] = field(default_factory=dict)
    _base: str = ""
    _finished: bool = False

    def __post_init__(self) -> None:
        check_built(self.spec)
        concept, model = self.spec.concept, self.model
        self.prompts = build_prompts(concept, model.vocabulary, model.encoder)

    @property
    def total(self) -> int:
        """Units of work: UNet passes and layer updates."""
        layers = len(cross_attention_modules(self.model.denoiser))
        return self._recording_passes() + layers * self.spec.steps

    def _recording_passes(self) -> int:
        prompts = self.prompts
        count = len(prompts.targets) + len(prompts.anchors) + len(prompts.preserve)
        return self._sampler().passes(count)

    def _sampler(self) -> SamplerSettings:
        return SamplerSettings(self.spec.trajectory_steps, self.spec.cfg)

    # A host may run us in inference mode, whose tensors cannot be differentiated. Decorators
    # switch it for each resumption alone; a `with` would last into the host's own code.
    @torch.inference_mode(False)
    @torch.enable_grad()
    def __iter__(self) -> Iterator[StepReport]:
        model, total = self.model, self.total
        self._finished, self._offsets, self._base = False, {}, fingerprint(model.denoiser)
        cond = _encode(model, self._all_prompts())
        uncond = _encode(model, [""])
        recording = Recording()
        states = record(
            model.denoiser, cond, uncond, self._sampler(), model.latent_size, self.spec.seed
        )
        for recording in states:
            self.passes = recording.passes
            yield StepReport(self.passes, total, "recording", self.passes)
        done = self.passes
        for name, module in cross_attention_modules(model.denoiser).items():
            told, free = recording.states(name)
            erase, keep = self._situations(told, free, cond.context.float(), uncond.context.float())
            device = device_of(model.denoiser)
            run = LayerRun(read_layer(module), erase.to(device), keep.to(device), self.spec)
            for step in run:
                done += 1
                self.final[name] = step
                yield StepReport(done, total, f"unlearning {name}", self.passes, step)
            self._keep(name, run)
        self._finished = True

    def _all_prompts(self) -> list[str]:
        return [*self.prompts.targets, *self.prompts.anchors, *self.prompts.preserve]

    def _situations(
        self, told: Tensor, free: Tensor, cond: Tensor, uncond: Tensor
    ) -> tuple[Situation, Situation]:
        n, stop = len(self.prompts.targets), 2 * len(self.prompts.targets)
        target, anchor, others = cond[:n], cond[n:stop], cond[stop:]
        # The concept is answered as its anchor on states of both trajectories: while the model
        # forgets, what enters a layer moves from the first kind to the second.
        erase = Situation(told[:stop], torch.cat([target, target]), torch.cat([anchor, anchor]))
        unguided = uncond.expand(len(free), -1, -1)[:: max(1, len(free) // 6)]
        kept = torch.cat([anchor, others, unguided])
        seen = torch.cat([told[n:], free[:: max(1, len(free) // 6)]])
        return erase, Situation(seen, kept, kept)

    def _keep(self, name: str, run: LayerRun) -> None:
        current, first = run.mask.current, run.mask.first
        assert current is not None and first is not None  # a layer takes at least one step
        for letter, offset, mask, start in zip("qkv", run.offset, current, first, strict=True):
            self._offsets[f"{name}.to_{letter}.weight"] = SparseOffset.of(offset)
            self.neurons[f"{name}.to_{letter}"] = {
                "entries": mask.numel(),
                "first": int(start.sum()),
                "last": int(mask.sum()),
                "overlap": overlap((start,), (mask,)),
            }

    @property
    def diff(self) -> WeightDiff:
        """The finished run's diff; raises SpecError when the run was not iterated to its end."""
        if not self._finished:
            raise SpecError("the run is not finished; iterate over it to its end first")
        provenance = {
            "engine": __version__,
            "spec": self.spec.to_json(),
            "base": self._base,
            "neurons": self.neurons,
            "passes": self.passes,
        }
        return WeightDiff(self._offsets, provenance)


def _encode(model: LentModel, prompts: Sequence[str]) -> Conditioning:
    with torch.no_grad():
        cond = model.encoder.encode(prompts)
    # Hosts may hand out inference tensors; a clone made here is an ordinary one.
    vector = None if cond.vector is None else cond.vector.clone()
    return Conditioning(cond.context.clone(), vector)
