"""The main job: concepts -> prompts -> recorded states -> selective fine-tuning -> diff."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .. import __version__
from ..diff import SparseOffset, WeightDiff, describe_base
from ..distributed import SINGLE, Workers
from ..errors import DivergenceError, SpecError
from ..models.attention import cross_attention_modules
from ..models.conditioning import Conditioning, with_syntax
from ..models.denoiser import Denoiser, device_of
from ..models.identity import Digest, model_identity, run_key
from ..models.keys import projection_of
from ..models.lent import LentModel
from ..models.precision import in_float32
from ..prompts.concept import PromptSet, build_prompts
from ..spec import UnlearnSpec
from .end_to_end import Cost, differentiable
from .knowledge import Inquiry, Knowledge, plainly_encoded
from .mask import overlap, thinned
from .problems import Problems, Unit
from .record import plan_of, recorded, sampler_of
from .resolve import followed
from .state import RunState
from .trainer import Metrics, SelectiveTrainer
from .trajectory import Plan, Recording


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
    standing: Metrics | None = None


@dataclass
class Unlearning:
    """One run: iterate over it for progress, stop whenever you like, then read `diff`.

    The lent model's weights are only ever read. `state` at any moment between two reports gives
    what a later run, made with `resume=`, goes on from; its diff is the same to the bit. A team's
    processes share batches of the recording and layers, and all end with the same diff.

    Before it records, a run asks whether the model knows the words (`ask`); `knowledge` is what it
    found, `warnings` what there is to say. strict: refuse what would be warned of, by SpecError.
    """

    model: LentModel
    spec: UnlearnSpec
    resume: RunState | None = None
    team: Workers = SINGLE
    strict: bool = False
    knowledge: Knowledge | None = None
    prompts: PromptSet = field(init=False)
    final: dict[str, Metrics] = field(default_factory=dict)
    neurons: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    passes: int = 0
    backward: int = 0
    _offsets: dict[str, SparseOffset] = field(default_factory=dict)
    _base: dict[str, Any] = field(default_factory=dict)
    _finished: bool = False
    _recording: Recording | None = None
    _piece: tuple[str, SelectiveTrainer] | None = None
    ground: Problems | None = None
    _settled: bool = False
    _encoded: tuple[Conditioning, Conditioning] | None = None
    _identity: str = ""
    _asks: bool = True

    @in_float32
    def __post_init__(self) -> None:
        model, spec = self.model, self.spec
        spec.refuse_unheeded()
        if spec.saliency == "clip" and model.score is None:
            raise SpecError(
                "this model comes without a CLIP score; use saliency attention or noise"
            )
        if spec.checkpointing and spec.hessian == "exact":
            raise SpecError("an exact Hessian and checkpointing do not go together; use finite")
        if spec.syntax == "host":
            self.model = model = replace(model, encoder=with_syntax(model.encoder))
        self._asks = self.knowledge is None
        self.prompts = self._named = self._build_prompts()
        self._inquiry = Inquiry(model, spec, self.prompts)

    def _build_prompts(self) -> PromptSet:
        model, spec = self.model, self.spec
        same = self.knowledge.same if self.knowledge else ()
        return build_prompts(
            spec.concepts, model.encoder, model.vocabulary, model.styles, spec.robust, same
        )

    @property
    def asking(self) -> int:
        """Count the UNet passes, one sample each, that asking takes."""
        return self._inquiry.passes if self._asks else 0

    @property
    def questions(self) -> tuple[str, ...]:
        """List the texts that `ask` encodes, for hosts that encode ahead."""
        return self._inquiry.texts if self._asks else ()

    @torch.inference_mode(False)
    @torch.no_grad()
    def ask(self) -> Iterator[StepReport]:
        """Ask what the model knows of the words, unless that is known; yields after each UNet call.

        It is the first part of a run, for those who want `prompts` and `warnings` before the rest.
        Raises SpecError for names of one concept that are two things, for what cannot be preserved
        and, if strict, for a word that the model does not know.
        """
        if self.knowledge is None and self.resume is not None and self.resume.knowledge:
            self._asks = False
            self._learn(self.resume.knowledge)
        if self.knowledge is None:
            for done in self._inquiry:
                yield StepReport(done, self.total, "asking what the model knows", 0)
            self._learn(self._inquiry.found)
        if self.strict and self.knowledge is not None and self.knowledge.warnings:
            raise SpecError(self.knowledge.warnings[0])

    def _learn(self, knowledge: Knowledge) -> None:
        """Take up what was found: what the model draws as a concept's is not preserved."""
        self.knowledge = knowledge
        if knowledge.same:
            self.prompts, self._encoded = self._build_prompts(), None

    @property
    def effect(self) -> float:
        """Return how much of the concept's effect is left, the mean over what has been trained."""
        return sum(step.effect for step in self.final.values()) / max(1, len(self.final))

    @property
    def failure(self) -> str | None:
        """Say that a finished run has made the concept stronger, if so."""
        zeroed = self.spec.objective == "zero"  # which is told by pictures alone
        if not self._finished or zeroed or self.effect <= 1.0:
            return None
        return (
            f"the run failed: {self.effect:.0%} of the concept's effect is left, more than before; "
            "try another anchor, more steps or a lower rate"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say what is wrong with the run so far, a sentence each."""
        told = self.knowledge.warnings if self.knowledge else ()
        return (*told, *filter(None, [self.failure]))

    @property
    def total(self) -> int:
        """Units of work: UNet passes that ask and record, and updates."""
        layers = len(cross_attention_modules(self.model.denoiser))
        pieces = 1 if self.spec.together else layers
        drawn = sampler_of(self.spec).passes(self.recorded)
        return self.asking + drawn + pieces * followed(self.spec).steps

    @property
    def steps(self) -> int:
        """Updates of each layer, or of all together."""
        return followed(self.spec).steps

    @property
    def recorded(self) -> int:
        """Count the prompts that are recorded, or, in robust mode, drawn."""
        return len(plan_of(followed(self.spec), self.prompts).recorded)

    # A host may run us in inference mode, whose tensors cannot be differentiated. Decorators
    # switch it for each resumption alone; a `with` would last into the host's own code.
    @torch.inference_mode(False)
    @torch.enable_grad()
    @in_float32
    def __iter__(self) -> Iterator[StepReport]:
        yield from self.ask()
        model, spec, team, total = self.model, followed(self.spec), self.team, self.total
        self._finished = self._settled = False
        self._base = describe_base(model.denoiser)
        cond, uncond = self._encode()
        plan = plan_of(spec, self.prompts)
        kept = self._restore(plan)
        if kept is not None and kept.finished:
            self._finished = True
            yield StepReport(total, total, "finished before", self.passes, self.backward)
            return
        if self._recording is None or not self._recording.over:
            for states in recorded(model, spec, plan, cond, uncond, team, self._recording):
                self._recording, self.passes = states, states.passes
                done = self.asking + self.passes
                yield StepReport(done, total, "recording", self.passes)
        assert self._recording is not None
        # A team's last batch may be another process's, of which no report came.
        self.passes = max(self.passes, self._recording.passes)
        done = self.asking + self._recording.passes
        score = model.score
        self.ground = Problems(
            spec, model.denoiser, self.prompts, cond, uncond, plan, self._recording, score
        )
        names: list[str] = []
        for number, piece in enumerate(self.ground.pieces()):
            self._settle_cost(kept)
            end = done + spec.steps
            names.append(piece.name)
            if piece.name not in self.final and team.mine(number):
                for standing in self._work(piece, kept):
                    run = self._piece[1] if self._piece else None
                    now = end if run and run.finished else done + (run.done if run else 0)
                    stage = f"unlearning {piece.name}"
                    yield StepReport(now, total, stage, self.passes, self.backward, standing)
            done = end
        self._pool(names)
        if not any(len(offset.indices) for offset in self._offsets.values()):
            raise SpecError(
                f"no entry stands out as a neuron of {spec.name!r} (xi = {spec.xi:g}): "
                "lower xi, raise the budget, or check that the model knows the concept"
            )
        self._finished = True

    def _work(self, piece: Unit, kept: RunState | None) -> Iterator[Metrics]:
        """Take a piece's steps and keep its result, or the last good one if it diverges."""
        run, curve = piece.start(), list[tuple[float, float]]()
        if kept is not None and kept.piece == piece.name:
            run.load(kept.forgetting)
            curve = list(kept.curves.get(piece.name, ()))
        self.curves[piece.name] = curve
        self._piece = (piece.name, run)
        spec = self.spec
        try:
            while not run.finished:
                with contextlib.ExitStack() as stack:  # never held while the host has the floor
                    if spec.together:
                        denoiser = self.model.denoiser
                        fit = differentiable(denoiser, spec.exact_hessian, spec.checkpointing)
                        stack.enter_context(fit)
                    standing = run.step()
                self._count()
                curve.append((standing.effect, standing.harm))
                yield standing
        except DivergenceError as error:
            self._keep(piece, run)
            raise DivergenceError(f"{piece.name}: {error}") from error
        self._keep(piece, run)
        self._piece = None

    def _settle_cost(self, kept: RunState | None) -> None:
        """Count what it took to set up, unless a run before this one has paid for it."""
        if self.ground is None or not self.ground.needs_whole:
            return
        if kept is not None and not self._settled:
            spent = kept.passes - kept.recording.passes
            if spent > 0:
                self.ground.through.cost = Cost(spent, kept.backward)
        self._settled = True
        self._count()

    def _count(self) -> None:
        if self.ground is not None and self.ground.needs_whole:
            cost = self.ground.through.cost
            self.passes = self.ground.recording.passes + cost.forward
            self.backward = cost.backward

    def _pool(self, names: Sequence[str]) -> None:
        """Put together what the team's processes did, in the order in which one would have."""
        for found in (self._offsets, self.neurons, self.final, self.curves):
            self.team.unite(found, names)
        self.passes, self.backward = max(self.team.gather((self.passes, self.backward)))

    def _keep(self, piece: Unit, run: SelectiveTrainer) -> None:
        current, first, standing = run.mask.current, run.mask.first, run.standing
        if current is None or first is None or standing is None:
            return  # it diverged before its first step was over
        current = run.keep_to_budget(current)
        self.final[piece.name] = standing
        views = map(run.problem.layout.parts, (run.offset, current, first))
        parts = zip(piece.keys, *views, run.mask.reports, strict=True)
        for key, offset, mask, start, report in parts:
            self._offsets[key] = SparseOffset.of(offset)
            if projection_of(key) is None:
                continue  # where neurons move is a question about q, k and v
            self.neurons[key.removesuffix(".weight")] = {
                "entries": mask.numel(),
                "first": int(start.sum()),
                "last": int(mask.sum()),
                "overlap": round(overlap(start, mask), 4),
                "drift": thinned(report.drift),
                "counts": thinned(report.counts),
            }

    @property
    def resumable(self) -> bool:
        """Tell whether there is a state to go on from; of a team, when recording is over."""
        recording = self._recording
        if recording is None or not self._base:
            return False
        return recording.over or self._finished or (bool(recording.parts) and self.team.size == 1)

    @property
    def state(self) -> RunState:
        """Return what a later run can go on from; raises SpecError while there is nothing yet."""
        if not self.resumable or self._recording is None:
            raise SpecError("there is nothing to resume from yet; recording has not begun")
        name, run = self._piece or ("", None)
        if run is not None and not run.steady:
            name, run = "", None  # stopped while its weights moved: this piece begins again
        known = {*self.final, name}
        return RunState(
            self.spec.to_json(),
            self.identity,
            self.passes,
            self.backward,
            self._recording,
            dict(self._offsets),
            dict(self.neurons),
            dict(self.final),
            name,
            run.state() if run else {},
            {piece: list(curve) for piece, curve in self.curves.items() if piece in known},
            knowledge=self.knowledge,
        )

    @property
    def identity(self) -> str:
        """Hash all that this run reads of its model and text encoder."""
        if not self._identity:
            self._identity = self._identify()
        return self._identity

    # Away from inference mode, as in `__iter__`: the encoded prompts are kept for it.
    @torch.inference_mode(False)
    @torch.no_grad()
    @in_float32
    def _identify(self) -> str:
        # By the prompts as they were before the model was asked: found the same at any time.
        model, texts = self.model, _texts(self._named)
        asked = self.prompts is self._named
        cond, uncond = self._encode() if asked else _encoded(model, texts)
        more = [model.more(cond)] if model.more else []
        if self.spec.saliency == "clip" and model.score is not None:
            # Decoder and CLIP are the host's own: they count by what they say of some latents.
            x = torch.randn(1, 4, *model.latent_size, generator=torch.Generator().manual_seed(0))
            score = model.score(x.to(device_of(model.denoiser)), self._named.targets[:1])
            more.append(Digest().tensor("score", score.float()).hex())
        return model_identity(
            model.denoiser, model.latent_size, texts, cond, uncond, " ".join(more)
        )

    @property
    def key(self) -> str:
        """Name this run by all that decides its diff."""
        place = device_of(self.model.denoiser).type
        return run_key(self.spec.to_json(), self.identity, place)

    @property
    def encoded(self) -> tuple[Conditioning, Conditioning]:
        """Return the encoded prompts, in the order of targets, anchors and preserved, and ""."""
        with torch.inference_mode(False):
            return self._encode()

    def _encode(self) -> tuple[Conditioning, Conditioning]:
        if self._encoded is None:
            self._encoded = _encoded(self.model, _texts(self.prompts))
        return self._encoded

    def _restore(self, plan: Plan) -> RunState | None:
        """Begin where the state to resume from left off, or at the beginning."""
        kept = self.resume
        if kept is None:
            self._recording, self._offsets, self.neurons, self.final = None, {}, {}, {}
            self.passes, self.backward, self.curves = 0, 0, {}
            return None
        self.check(kept)
        _check_extent(kept, plan, self.model.denoiser)
        self._recording, self.passes, self.backward = kept.recording, kept.passes, kept.backward
        self._offsets, self.neurons = dict(kept.offsets), dict(kept.neurons)
        self.final = dict(kept.final)
        self.curves = {name: list(kept.curves.get(name, ())) for name in kept.final}
        return kept

    def check(self, kept: RunState) -> None:
        """Raise SpecError for a state that this run cannot go on from to the same diff."""
        if kept.spec != self.spec.to_json():
            raise SpecError(
                "the saved state belongs to another spec; start without it, or name another file"
            )
        if kept.engine != __version__:
            raise SpecError(
                f"the saved state is of TRUST Unlearn {kept.engine[:40]}, this is {__version__}; "
                "finish it with that version, or start without it"
            )
        if kept.base != self.identity:
            raise SpecError(
                "the saved state belongs to another model (its UNet, text encoder or picture size "
                "differ); start without it, or name another file"
            )

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
        provenance: dict[str, Any] = {
            "engine": __version__,
            "spec": self.spec.to_json(),
            **self._base,
            "neurons": self.neurons,
            "passes": self.passes,
            "backward": self.backward,
        }
        if self.model.applied:
            kept = ("sha256", "strength", "spec", "parts", "how")
            provenance["applied"] = [
                {name: one[name] for name in kept if name in one} for one in self.model.applied
            ]
        if not complete:
            provenance["complete"] = False
        # Rounded now to what a file will hold, so that what is audited is what is saved.
        return WeightDiff(self._offsets, provenance).compact()


def _check_extent(kept: RunState, plan: Plan, denoiser: Denoiser) -> None:
    """Compare a state's recording, layers and offsets with the model's; raises SpecError."""
    recording = kept.recording
    weights = dict(denoiser.module.named_parameters()) if kept.offsets else {}
    rows = sum(len(part.x) for part in recording.parts)
    sound = rows <= len(plan.recorded)
    if recording.over:
        layers = set(cross_attention_modules(denoiser))
        sound = len(recording.latents) == len(plan.recorded)
        sound = sound and (not recording.told or set(recording.told) == layers)
    for key, offset in kept.offsets.items():
        weight = weights.get(denoiser.parameter_name(key))
        sound = sound and weight is not None and tuple(weight.shape) == offset.shape
    if not sound:
        raise SpecError("the saved state does not fit this model's layers; start without it")


def _texts(prompts: PromptSet) -> list[str]:
    return [*prompts.targets, *prompts.anchors, *prompts.preserve]


def _encoded(model: LentModel, texts: Sequence[str]) -> tuple[Conditioning, Conditioning]:
    return plainly_encoded(model, texts), plainly_encoded(model, [""])
