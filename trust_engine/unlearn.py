"""The main job: concepts -> prompts -> recorded states -> selective fine-tuning -> diff."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .attention import cross_attention_modules, read_layer
from .concept import PromptSet, build_prompts
from .conditioning import Conditioning, TextEncoder, stack
from .denoiser import Denoiser, device_of
from .diff import SparseOffset, WeightDiff, fingerprint
from .errors import DivergenceError, SpecError
from .forgetting import Forgetting, Standing
from .local import LayerProblem, Situation
from .mask import Tensors, overlap
from .resume import RunState
from .saliency import AttentionSaliency, ClipSaliency, NoiseSaliency, Score, Source, averaged
from .sampler import SamplerSettings
from .spec import UnlearnSpec
from .trajectory import Plan, Recording, plan_recording, record
from .whole import Cost, Moments, WholeProblem, differentiable

UNGUIDED = 6  # rows of the empty prompt among what must stay: guidance leans on it
MOMENTS = 8  # of a mask's drift that a diff's label keeps


@dataclass(frozen=True)
class LentModel:
    """What a host lends: the UNet, text encoding and latent size (h, w).

    vocabulary, styles: words the model knows, from which the engine proposes what to preserve;
    score: how well latents show prompts, for the saliency source "clip".
    """

    denoiser: Denoiser
    encoder: TextEncoder
    latent_size: tuple[int, int]
    vocabulary: Sequence[str] = ()
    styles: Sequence[str] = ()
    score: Score | None = None


@dataclass(frozen=True)
class StepReport:
    """Progress: `done` of `total` units of work, the stage's name, and what it has cost so far.

    passes, backward: UNet passes, one sample each; standing: effect, harm and mask, if at work.
    """

    done: int
    total: int
    stage: str
    passes: int
    backward: int = 0
    standing: Standing | None = None


@dataclass
class Piece:
    """Weights that are fine-tuned together: one layer (local), or all of them (global)."""

    name: str
    keys: list[str]
    start: Callable[[], Forgetting]


@dataclass
class Unlearning:
    """One run: iterate over it for progress, stop whenever you like, then read `diff`.

    The lent model's weights are only ever read. `state` at any moment between two reports gives
    what a later run, made with `resume=`, goes on from; its diff is the same to the bit.
    """

    model: LentModel
    spec: UnlearnSpec
    resume: RunState | None = None
    prompts: PromptSet = field(init=False)
    final: dict[str, Standing] = field(default_factory=dict)
    neurons: dict[str, dict[str, Any]] = field(default_factory=dict)
    passes: int = 0
    backward: int = 0
    _offsets: dict[str, SparseOffset] = field(default_factory=dict)
    _base: str = ""
    _finished: bool = False
    _recording: Recording | None = None
    _piece: tuple[str, Forgetting] | None = None
    _whole: WholeProblem | None = None

    def __post_init__(self) -> None:
        model, spec = self.model, self.spec
        if spec.saliency == "clip" and model.score is None:
            raise SpecError(
                "this model comes without a CLIP score; use saliency attention or noise"
            )
        if spec.checkpointing and spec.hessian == "exact":
            raise SpecError("an exact Hessian and checkpointing do not go together; use finite")
        self.prompts = build_prompts(spec.concepts, model.encoder, model.vocabulary, model.styles)

    @property
    def total(self) -> int:
        """Units of work: UNet passes that record, and updates."""
        layers = len(cross_attention_modules(self.model.denoiser))
        pieces = layers if self.spec.engine == "local" else 1
        return self._sampler().passes(len(self._plan().recorded)) + pieces * self.spec.steps

    def _sampler(self) -> SamplerSettings:
        return SamplerSettings(self.spec.trajectory_steps, self.spec.cfg)

    def _plan(self) -> Plan:
        room = self.spec.passes // self._sampler().passes(1)
        return plan_recording(len(self.prompts.targets), len(self.prompts.preserve), room)

    # A host may run us in inference mode, whose tensors cannot be differentiated. Decorators
    # switch it for each resumption alone; a `with` would last into the host's own code.
    @torch.inference_mode(False)
    @torch.enable_grad()
    def __iter__(self) -> Iterator[StepReport]:
        model, spec, total = self.model, self.spec, self.total
        self._finished, self._base = False, fingerprint(model.denoiser)
        kept = self._restore()
        cond, uncond = _encode(model, self._all_prompts()), _encode(model, [""])
        plan = self._plan()
        if self._recording is None:
            chosen = cond.select(torch.tensor(plan.recorded).to(cond.context.device))
            states = record(
                model.denoiser, chosen, uncond, self._sampler(), model.latent_size, spec.seed
            )
            for recording in states:
                self.passes = recording.passes
                yield StepReport(self.passes, total, "recording", self.passes)
            self._recording = recording
        done = self._recording.passes
        for piece in self._pieces(cond, uncond, plan):
            end = done + spec.steps
            if piece.name not in self.final:
                for standing in self._work(piece, kept):
                    run = self._piece[1] if self._piece else None
                    now = end if run and run.finished else done + (run.done if run else 0)
                    stage = f"unlearning {piece.name}"
                    yield StepReport(now, total, stage, self.passes, self.backward, standing)
            done = end
        if not any(len(offset.indices) for offset in self._offsets.values()):
            raise SpecError(
                f"no entry stands out as a neuron of {spec.name!r} (xi = {spec.xi:g}): "
                "lower xi, raise the budget, or check that the model knows the concept"
            )
        self._finished = True

    def _work(self, piece: Piece, kept: RunState | None) -> Iterator[Standing]:
        """Take a piece's steps and keep its result, or the last good one if it diverges."""
        run = piece.start()
        if kept is not None and kept.piece == piece.name:
            run.load(kept.forgetting)
        self._piece = (piece.name, run)
        spec = self.spec
        try:
            while not run.finished:
                with contextlib.ExitStack() as stack:  # never held while the host has the floor
                    if spec.engine == "global":
                        denoiser = self.model.denoiser
                        fit = differentiable(denoiser, spec.exact_hessian, spec.checkpointing)
                        stack.enter_context(fit)
                    standing = run.step()
                self._count()
                yield standing
        except DivergenceError as error:
            self._keep(piece, run)
            raise DivergenceError(f"{piece.name}: {error}") from error
        self._keep(piece, run)
        self._piece = None

    def _count(self) -> None:
        if self._whole is not None:
            recorded = 0 if self._recording is None else self._recording.passes
            self.passes = recorded + self._whole.cost.forward
            self.backward = self._whole.cost.backward

    def _all_prompts(self) -> list[str]:
        return [*self.prompts.targets, *self.prompts.anchors, *self.prompts.preserve]

    def _pieces(self, cond: Conditioning, uncond: Conditioning, plan: Plan) -> Iterator[Piece]:
        modules = cross_attention_modules(self.model.denoiser)
        spec = self.spec
        keys = {name: [f"{name}.to_{letter}.weight" for letter in "qkv"] for name in modules}
        if spec.engine == "global" or spec.saliency != "attention":
            self._whole = self._make_whole(cond, uncond, plan)
        fixed = self._fixed() if self._whole is not None and spec.engine == "local" else {}
        if self._whole is not None and self.resume is not None:  # what was paid for stays paid
            spent = self.resume.passes - self.resume.recording.passes
            self._whole.cost = Cost(spent, self.resume.backward)
            self._count()
        if spec.engine == "global":
            source = self._source(cond, uncond, plan)
            everything = [key for names in keys.values() for key in names]
            assert self._whole is not None
            yield Piece("the UNet", everything, partial(Forgetting, self._whole, spec, source))
            return
        for name in modules:

            def start(name: str = name) -> Forgetting:
                problem = self._layer(name, cond, uncond, plan)
                return Forgetting(problem, spec, fixed=fixed.get(name))

            yield Piece(name, keys[name], start)

    def _layer(
        self, name: str, cond: Conditioning, uncond: Conditioning, plan: Plan
    ) -> LayerProblem:
        assert self._recording is not None
        device = device_of(self.model.denoiser)
        module = cross_attention_modules(self.model.denoiser)[name]
        told, free = self._recording.states(name)
        erase, keep = self._situations(
            told, free, cond.context.float(), uncond.context.float(), plan
        )
        spec = self.spec
        return LayerProblem(
            read_layer(module), erase.to(device), keep.to(device), spec.eta, spec.seed
        )

    def _situations(
        self, told: Tensor, free: Tensor, cond: Tensor, uncond: Tensor, plan: Plan
    ) -> tuple[Situation, Situation]:
        n = len(self.prompts.targets)
        cond, uncond = cond.cpu(), uncond.cpu()
        target, anchor, stay = cond[:n], cond[n : 2 * n], cond[n:]
        # The concept is answered as its anchor on states of both trajectories: while the model
        # forgets, what enters a layer moves from the first kind to the second.
        now, goal = torch.cat([target, target]), torch.cat([anchor, anchor])
        erase = Situation(told, plan.rows[: 2 * n], now, goal)
        some = free[:: max(1, len(free) // UNGUIDED)]
        kept = torch.cat([stay, uncond.expand(len(some), -1, -1)])
        unguided = len(told) + torch.arange(len(some))
        rows = torch.cat([plan.rows[n:], unguided])
        return erase, Situation(torch.cat([told, some]), rows, kept, kept)

    def _make_whole(self, cond: Conditioning, uncond: Conditioning, plan: Plan) -> WholeProblem:
        recording = self._recording
        assert recording is not None
        n = len(self.prompts.targets)
        target, anchor, stay = (
            cond.select(slice(*ends)) for ends in ((0, n), (n, 2 * n), (n, None))
        )
        erase = Moments(plan.rows[: 2 * n], stack([target, target]), stack([anchor, anchor]))
        unguided = torch.arange(0, len(plan.recorded), max(1, len(plan.recorded) // UNGUIDED))
        kept = stack([stay, *[uncond] * len(unguided)])
        keep = Moments(torch.cat([plan.rows[n:], unguided]), kept, kept)
        weights = {}
        for name, module in cross_attention_modules(self.model.denoiser).items():
            layer = read_layer(module)
            for letter, weight in zip("qkv", (layer.q, layer.k, layer.v), strict=True):
                weights[f"{name}.to_{letter}.weight"] = (weight, layer.heads)
        return WholeProblem(
            self.model.denoiser, weights, recording.latents, recording.timesteps, erase, keep,
            self.spec,
        )  # fmt: skip

    def _source(self, cond: Conditioning, uncond: Conditioning, plan: Plan) -> Source | None:
        """Choose where the global engine's saliency comes from; None: the effect's gradient."""
        assert self._whole is not None
        if self.spec.saliency == "noise":
            return None
        if self.spec.saliency == "clip":
            assert self.model.score is not None
            return ClipSaliency(self._whole, self.model.score, self.prompts.targets)
        names = cross_attention_modules(self.model.denoiser)
        return AttentionSaliency([self._layer(name, cond, uncond, plan) for name in names])

    def _fixed(self) -> dict[str, Tensors]:
        """Take the whole UNet's saliency once, at theta_0, for the local engine's layers."""
        whole = self._whole
        assert whole is not None
        source: Source = NoiseSaliency(whole)
        if self.spec.saliency == "clip":
            assert self.model.score is not None
            source = ClipSaliency(whole, self.model.score, self.prompts.targets)
        found = averaged(source, tuple(b.clone().requires_grad_(True) for b in whole.base))
        self._count()
        layers: dict[str, Tensors] = {}
        for key, saliency in zip(whole.keys, found, strict=True):
            name = key.rsplit(".to_", 1)[0]
            layers[name] = (*layers.get(name, ()), saliency)
        return layers

    def _keep(self, piece: Piece, run: Forgetting) -> None:
        current, first, standing = run.mask.current, run.mask.first, run.standing
        if current is None or first is None or standing is None:
            return  # it diverged before its first step was over
        self.final[piece.name] = standing
        parts = zip(piece.keys, run.offset, current, first, run.mask.reports, strict=True)
        for key, offset, mask, start, report in parts:
            self._offsets[key] = SparseOffset.of(offset)
            self.neurons[key.removesuffix(".weight")] = {
                "entries": mask.numel(),
                "first": int(start.sum()),
                "last": int(mask.sum()),
                "overlap": round(overlap((start,), (mask,)), 4),
                "drift": _thinned(report.drift),
                "counts": _thinned(report.counts),
            }

    @property
    def resumable(self) -> bool:
        """Tell whether there is a state to go on from: recording is over."""
        return self._recording is not None

    @property
    def state(self) -> RunState:
        """Return what a later run can go on from; raises SpecError while there is nothing yet."""
        if self._recording is None:
            raise SpecError("there is nothing to resume from yet; recording is not over")
        name, run = self._piece or ("", None)
        return RunState(
            self.spec.to_json(),
            self._base,
            self.passes,
            self.backward,
            self._recording,
            dict(self._offsets),
            dict(self.neurons),
            dict(self.final),
            name,
            run.state() if run else {},
        )

    def _restore(self) -> RunState | None:
        """Begin where the state to resume from left off, or at the beginning."""
        kept = self.resume
        if kept is None:
            self._recording, self._offsets, self.neurons, self.final = None, {}, {}, {}
            self.passes = self.backward = 0
            return None
        if kept.spec != self.spec.to_json():
            raise SpecError("the saved state belongs to another spec; start without it")
        if kept.base != self._base:
            raise SpecError("the saved state belongs to another model; start without it")
        self._recording, self.passes, self.backward = kept.recording, kept.passes, kept.backward
        self._offsets, self.neurons = dict(kept.offsets), dict(kept.neurons)
        self.final = dict(kept.final)
        return kept

    @property
    def diff(self) -> WeightDiff:
        """The finished run's diff; raises SpecError when the run was not iterated to its end."""
        if not self._finished:
            raise SpecError("the run is not finished; iterate over it to its end first")
        return self._diff()

    @property
    def last_good(self) -> WeightDiff:
        """What a run that diverged had reached; raises SpecError when that is nothing."""
        if not self._offsets:
            raise SpecError("the run has not changed anything yet")
        return self._diff(complete=False)

    def _diff(self, complete: bool = True) -> WeightDiff:
        provenance = {
            "engine": __version__,
            "spec": self.spec.to_json(),
            "base": self._base,
            "neurons": self.neurons,
            "passes": self.passes,
            "backward": self.backward,
        }
        if not complete:
            provenance["complete"] = False
        return WeightDiff(self._offsets, provenance)


def _thinned(values: Sequence[float]) -> list[float]:
    """Keep a few of many numbers, the first and the last among them."""
    if len(values) <= MOMENTS:
        return [round(v, 4) for v in values]
    places = [round(i * (len(values) - 1) / (MOMENTS - 1)) for i in range(MOMENTS)]
    return [round(values[i], 4) for i in places]


def _encode(model: LentModel, prompts: Sequence[str]) -> Conditioning:
    with torch.no_grad():
        cond = model.encoder.encode(prompts)
    # Hosts may hand out inference tensors; a clone made here is an ordinary one.
    vector = None if cond.vector is None else cond.vector.clone()
    return Conditioning(cond.context.clone(), vector)
