"""Algorithm 1: from concepts to a diff, by selective fine-tuning of their neurons.

    write prompts c, their anchors a, and what must stay               prompts
    in robust mode: draw c, a and what must stay, take out of theta_0  scrubbing
        what only the pictures of c have, let what is left of them be
        seen as those of a, and go on from there
    record x_l, z_t on trajectories of theta_0                         trajectory
    for every unit of weights theta (a layer, or the whole UNet):      units
        for every step:                                                trainer
            E = effect(theta),  g = dE/dtheta                          layerwise, end_to_end
            m = neurons(|g|), or those whose change has done most      mask
            L = E + lambda R(g, m) + beta P(theta)                     objective
            theta = Adam(theta, dL/dtheta) within m, theta_0 outside   optimiser
    diff = theta - theta_0                                             results

Around it: what was asked becomes what is done in `resolve_spec`, once; `results` holds what has
come of it, also of several processes; `run_state` and `resume_check` are for going on, `provenance`
for the label.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..diff import WeightDiff, describe_base
from ..diff.overlaid import Overlaid
from ..distributed import SINGLE, Workers
from ..errors import DivergenceError, SpecError
from ..models.contract import Conditioning, LentModel, device_of, with_syntax
from ..models.precision import in_float32
from ..prompts.concept import PromptSet, build_prompts, refuse_long
from ..spec import UnlearnSpec
from .end_to_end import NOT_TOGETHER, differentiable
from .provenance import identity_of, key_of, provenance_of
from .resolve_spec import resolve
from .results import Results
from .resume_check import check_extent, check_origin
from .run_state import RunState
from .scrubbing.blocks import weights_by_block
from .scrubbing.picture_lists import PictureLists
from .scrubbing.picture_stage import (
    STAGE,
    PictureStage,
    drawing_passes,
    lists_of,
    passes_of,
    relabelling_work,
    work_behind,
)
from .trainer import Metrics, SelectiveTrainer
from .trajectory import Recording, plan_of, recorded, sampler_of
from .units import Problems, Unit, units_of
from .word_knowledge import Inquiry, Knowledge


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
    plan: UnlearnSpec = field(init=False)  # the spec resolved: what is done
    lists: PictureLists | None = field(init=False)  # what robust mode draws
    results: Results = field(default_factory=Results)
    ground: Problems | None = None
    _base: dict[str, Any] = field(default_factory=dict)
    _finished: bool = False
    _recording: Recording | None = None
    _piece: tuple[str, SelectiveTrainer] | None = None
    _pictures: PictureStage | None = None
    _encoded: tuple[Conditioning, Conditioning] | None = None
    _identity: str = ""
    _asks: bool = True

    @in_float32
    def __post_init__(self) -> None:
        model, spec = self.model, self.spec
        spec.refuse_unheeded()
        if spec.saliency == "clip" and model.score is None:
            raise SpecError(
                "this model comes without a CLIP score",
                remedy="use {saliency attention} or {saliency noise}",
            )
        if spec.checkpointing and spec.ablation.hessian == "exact":
            raise SpecError(NOT_TOGETHER, remedy="leave the spec's ablation.hessian at auto")
        if spec.syntax == "host":
            self.model = model = replace(model, encoder=with_syntax(model.encoder))
        self.plan = resolve(spec)
        self._asks = self.knowledge is None
        self._write_prompts()
        self._named = self.texts
        self._inquiry = Inquiry(model, spec, self.prompts)

    def _write_prompts(self) -> None:
        model, spec = self.model, self.spec
        about = spec.concepts, model.encoder, model.vocabulary, model.styles
        same = self.knowledge.same if self.knowledge else ()
        self.prompts = build_prompts(*about, left_out=same)
        self.lists = None
        if spec.robust:
            refuse_long(spec.stays, model.encoder)
            self.lists = lists_of(spec, build_prompts(*about, named=True, left_out=same))

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
            self._write_prompts()
            self._encoded = None

    @property
    def final(self) -> dict[str, Metrics]:
        """Return the last figures of each unit that is done."""
        return self.results.final

    @property
    def neurons(self) -> dict[str, dict[str, Any]]:
        """Tell by projection how many neurons there are and how they moved."""
        return self.results.neurons

    @property
    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Return effect and harm after each step, by unit."""
        return self.results.curves

    @property
    def passes(self) -> int:
        """Count UNet passes, one sample each, but for those that asked."""
        return self.results.passes

    @property
    def backward(self) -> int:
        """Count UNet passes back."""
        return self.results.backward

    @property
    def effect(self) -> float:
        """Return how much of the concept's effect is left, the mean over what has been trained."""
        return self.results.effect

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
        known = self.knowledge.warnings if self.knowledge else ()
        return (*known, *filter(None, [self.failure]))

    @property
    def total(self) -> int:
        """Units of work: UNet passes that ask, draw, scrub, relabel and record, and updates."""
        return self._before_recording + sampler_of(self.plan).passes(self.recorded) + self._updates

    @property
    def _before_recording(self) -> int:
        """Count the units of work that come before recording."""
        pictures = passes_of(self.spec) + relabelling_work(self.spec) if self.lists else 0
        return self.asking + self._drawing + pictures

    @property
    def _drawing(self) -> int:
        return drawing_passes(self.spec, self.lists) if self.lists else 0

    @property
    def steps(self) -> int:
        """Updates of each layer, or of all together."""
        return self.plan.steps

    @property
    def _updates(self) -> int:
        return units_of(self.plan, self.model.denoiser) * self.plan.steps

    def behind(self, state: RunState) -> float:
        """Tell how much of this run's work a state has behind it, 0..1."""
        _, steps, recorded = state.reached
        if self.lists and state.scrubbed is None:
            blocks = len(weights_by_block(self.model.denoiser))
            done = self.asking + recorded + work_behind(self.spec, blocks, state.forgetting)
        else:
            trained = len(state.final) * self.plan.steps + steps
            done = self._before_recording + recorded + trained
        return done / max(1, self.total)

    @property
    def recorded(self) -> int:
        """Count the prompts that are recorded."""
        return len(plan_of(self.plan, self.prompts).recorded)

    @property
    def drawn(self) -> int:
        """Count the pictures that robust mode draws."""
        return len(self.lists.prompts) if self.lists else 0

    # A host may run us in inference mode, whose tensors cannot be differentiated. Decorators
    # switch it for each resumption alone; a `with` would last into the host's own code.
    @torch.inference_mode(False)
    @torch.enable_grad()
    @in_float32
    def __iter__(self) -> Iterator[StepReport]:
        yield from self.ask()
        kept, total = self._begin(), self.total
        if kept is not None and kept.finished:
            self._finished = True
            yield StepReport(total, total, "finished before", self.passes, self.backward)
            return
        if self.lists and self.results.scrubbed is None:
            yield from self._scrub(total, kept)
        yield from self._record(total)
        yield from self._tune(total, kept)
        self._finished = True

    def _tune(self, total: int, kept: RunState | None) -> Iterator[StepReport]:
        """Fine-tune unit after unit."""
        units: list[str] = []
        self.ground = self._problems()
        for unit in self.ground.pieces():
            if not units:
                self.results.count(self.ground, kept)
            units.append(unit.name)
            mine = self.team.mine(len(units) - 1) and unit.name not in self.final
            for standing in self._train(unit, kept) if mine else ():
                done = self._done(len(units) - 1)
                stage, spent = f"unlearning {unit.name}", (self.passes, self.backward)
                yield StepReport(done, total, stage, *spent, standing)
        self.results.pool(self.team, units)
        if not self.results.changed:
            raise SpecError(
                f"no entry stands out as a neuron of {self.spec.name!r} (xi = {self.plan.xi:g})",
                remedy="lower {xi}, raise {budget}, or check that the model knows the concept",
            )

    def _scrub(self, total: int, kept: RunState | None) -> Iterator[StepReport]:
        """Take out what only the concept's pictures have, and relabel what is left of it."""
        assert self.lists is not None
        (cond, uncond), begun = self._encode(), kept.forgetting if kept is not None else {}
        shown = cond.select(slice(0, self.drawn))
        stage = self._pictures = PictureStage(
            self.model, self.spec, self.lists, shown, uncond, self.team, self._recording, begun
        )
        for done, what in stage:
            self.results.passes, self.results.backward = stage.passes, stage.backward
            yield StepReport(self.asking + done, total, what, self.passes, self.backward)
        self.results.scrubbed = stage.found
        self.results.passes, self.results.backward = self.results.spent_before
        self._recording = self._pictures = None

    @property
    def _ground(self) -> LentModel:
        """Return what is recorded and trained: in robust mode the scrubbed model."""
        scrubbed = self.results.scrubbed
        if scrubbed is None:
            return self.model
        return replace(self.model, denoiser=Overlaid(self.model.denoiser, scrubbed.offsets))

    def _begin(self) -> RunState | None:
        """Begin where the state to resume from left off, or at the beginning."""
        self._finished = False
        self._base, kept = describe_base(self.model.denoiser), self.resume
        self._encode()
        if kept is None:
            self._recording, self.results = None, Results()
            return None
        self.check(kept)
        drawing = self.lists is not None and kept.scrubbed is None
        check_extent(kept, self.drawn if drawing else self.recorded, self.model.denoiser)
        self._recording, self.results = kept.recording, Results.of(kept)
        return kept

    def _record(self, total: int) -> Iterator[StepReport]:
        """Record what is not recorded yet."""
        if self._recording is not None and self._recording.over:
            return
        plan, (cond, uncond) = plan_of(self.plan, self.prompts), self._contexts
        for states in recorded(
            self._ground, self.plan, plan, cond, uncond, self.team, self._recording
        ):
            self._recording, self.results.passes = (
                states,
                self.results.spent_before[0] + states.passes,
            )
            done = self._before_recording + states.passes
            yield StepReport(done, total, "recording", self.passes)
        assert self._recording is not None
        # A team's last batch may be another process's, of which no report came.
        spent = self.results.spent_before[0] + self._recording.passes
        self.results.passes = max(self.passes, spent)

    def _problems(self) -> Problems:
        assert self._recording is not None
        plan, (cond, uncond) = plan_of(self.plan, self.prompts), self._contexts
        model, scrubbed = self.model, self.results.scrubbed
        return Problems(
            self.plan, model.denoiser, self.prompts, cond, uncond, plan, self._recording,
            model.score, scrubbed.offsets if scrubbed else {},
        )  # fmt: skip

    def _train(self, unit: Unit, kept: RunState | None) -> Iterator[Metrics]:
        """Take a unit's steps and keep its result, or the last good one if it diverges."""
        assert self.ground is not None
        trainer, curve = unit.start(), list[tuple[float, float]]()
        if kept is not None and kept.piece == unit.name:
            trainer.load(kept.forgetting)
            curve = list(kept.curves.get(unit.name, ()))
        self.curves[unit.name] = curve
        self._piece = (unit.name, trainer)
        try:
            while not trainer.finished:
                with self._fit():  # never held while the host has the floor
                    standing = trainer.step()
                self.results.count(self.ground)
                curve.append((standing.effect, standing.harm))
                yield standing
        except DivergenceError as error:
            self.results.take(unit, trainer)
            raise DivergenceError(f"{unit.name}: {error}") from error
        self.results.take(unit, trainer)
        self._piece = None

    def _fit(self) -> contextlib.AbstractContextManager[None]:
        """Make the UNet fit for gradients where they pass through it."""
        plan = self.plan
        if not plan.together:
            return contextlib.nullcontext()
        return differentiable(self.model.denoiser, plan.exact_hessian, plan.checkpointing)

    def _done(self, before: int) -> int:
        """Count the units of work that are done within a unit of weights, after `before` others."""
        assert self._recording is not None
        trainer, steps = self._piece[1] if self._piece else None, self.plan.steps
        own = steps if trainer is None or trainer.finished else trainer.done
        return self._before_recording + self._recording.passes + before * steps + own

    @property
    def resumable(self) -> bool:
        """Tell whether there is a state to go on from; of a team, when recording is over."""
        recording = self._at_hand
        if recording is None or not self._base:
            return False
        return recording.over or self._finished or (bool(recording.parts) and self.team.size == 1)

    @property
    def _at_hand(self) -> Recording | None:
        """Return what is recorded, or, while robust mode draws and scrubs, drawn."""
        return self._pictures.drawn if self._pictures else self._recording

    @property
    def state(self) -> RunState:
        """Return what a later run can go on from; raises SpecError while there is nothing yet."""
        recording = self._at_hand
        if not self.resumable or recording is None:
            raise SpecError("there is nothing to resume from yet; recording has not begun")
        name, run = self._piece or ("", None)
        if run is not None and not run.steady:
            name, run = "", None  # stopped while its weights moved: this piece begins again
        at_work = name, run.state() if run else {}
        if self._pictures is not None and self._pictures.kept:
            at_work = STAGE, self._pictures.kept
        spec, results = self.spec.to_json(), self.results
        return results.state(spec, self.identity, recording, *at_work, self.knowledge)

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
        texts = self._named
        encoded = self._encode() if texts == self.texts else _encoded(self.model, texts)
        return identity_of(self.model, self.spec, texts, *encoded)

    @property
    def texts(self) -> tuple[str, ...]:
        """List what the run encodes: the pictures it draws, then targets, anchors and preserved."""
        return (*(self.lists.prompts if self.lists else ()), *self.prompts.texts)

    @property
    def key(self) -> str:
        """Name this run by all that decides its diff."""
        place = device_of(self.model.denoiser).type
        return key_of(self.spec, self.identity, place)

    @property
    def encoded(self) -> tuple[Conditioning, Conditioning]:
        """Return `texts` encoded, and ""."""
        with torch.inference_mode(False):
            return self._encode()

    def _encode(self) -> tuple[Conditioning, Conditioning]:
        if self._encoded is None:
            self._encoded = _encoded(self.model, self.texts)
        return self._encoded

    @property
    def _contexts(self) -> tuple[Conditioning, Conditioning]:
        """Return targets, anchors and preserved encoded, and ""."""
        cond, uncond = self._encode()
        return cond.select(slice(self.drawn, None)), uncond

    def check(self, kept: RunState) -> None:
        """Raise SpecError for a state that this run cannot go on from to the same diff."""
        check_origin(kept, self.spec.to_json(), lambda: self.identity)

    @property
    def diff(self) -> WeightDiff:
        """The finished run's diff; raises SpecError when the run was not iterated to its end."""
        if not self._finished:
            raise SpecError("the run is not finished; iterate over it to its end first")
        return self._diff()

    @property
    def last_good(self) -> WeightDiff:
        """What a run that diverged had reached; raises SpecError when that is nothing."""
        if not self.results.whole:
            raise SpecError("the run has not changed anything yet")
        return self._diff(complete=False)

    def _diff(self, complete: bool = True) -> WeightDiff:
        label = provenance_of(self.model, self.spec, self._base, self.results, complete)
        # Rounded now to what a file will hold, so that what is audited is what is saved.
        return WeightDiff(self.results.whole, label).compact()


def _encoded(model: LentModel, texts: Sequence[str]) -> tuple[Conditioning, Conditioning]:
    return model.encode(texts), model.encode([""])
