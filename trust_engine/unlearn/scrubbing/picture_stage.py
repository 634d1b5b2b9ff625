"""Robust mode's first stage: draw, scrub, relabel; what a spec asks for, and what a run keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, prod

import torch
from torch import Tensor

from ...diff import LowRankOffset
from ...distributed import SINGLE, Workers
from ...errors import SpecError
from ...models.contract import Conditioning, Denoiser, LentModel, compute_dtype
from ...prompts.concept import PromptSet
from ...spec import DEFAULTS, UnlearnSpec
from ..resolve_spec import resolve
from ..trajectory import Recording
from .blocks import TOGETHER, Block, innermost, weights_by_block
from .directions import Edit
from .eigen import operations
from .noised import Drawn
from .picture_lists import PictureLists, picture_lists
from .pictures import draw, noised, recipe_of
from .relabel import BACK, Relabelling, RelabelPlan
from .run import Scrubbing, ScrubPlan

STAGE, RELABELLING = "scrubbing", "relabelling"
HERE = "relabelling."  # begins the names of what relabelling keeps
LARGE = 100_000_000  # weights of a UNet whose activations do not all fit beside it
TOGETHER_BACK = 2  # pictures that gradients pass together in such a one: as many as sampling's
STORED = 4.25  # numbers a sample, times the first width and the latent's size (docs, "Cost")
PARTS = ("up", "down", "lambdas", "harm")


@dataclass(frozen=True)
class Scrubbed:
    """What the stage came to: offsets by ldm name, and UNet passes, one sample each, drawing too.

    left: the energy that scrubbing leaves in the directions that stood out, 0..1; harm: the shares
    of the rest's output energy that it changes in layers, added up; backward: passes back.
    """

    offsets: Mapping[str, LowRankOffset]
    left: float
    harm: float
    passes: int
    backward: int = 0

    @property
    def figures(self) -> tuple[float, float, int, int]:
        """Return all but the offsets."""
        return self.left, self.harm, self.passes, self.backward


@dataclass
class PictureStage:
    """Draw, scrub, relabel: iterate for units of work done, UNet passes, and what is at work.

    cond: `lists.prompts`, encoded. drawn, begun: what a run that was stopped had drawn, and what it
    kept of the rest (`kept`), or {}. Of a team, all draw, and one does the rest.
    """

    model: LentModel
    spec: UnlearnSpec
    lists: PictureLists
    cond: Conditioning
    uncond: Conditioning
    team: Workers = SINGLE
    drawn: Recording | None = None
    begun: Mapping[str, Tensor] = field(default_factory=dict)
    passes: int = 0
    backward: int = 0
    found: Scrubbed | None = None
    _work: Scrubbing | None = None
    _training: Relabelling | None = None

    def __iter__(self) -> Iterator[tuple[int, str]]:
        yield from self._draw()
        assert self.drawn is not None
        self.passes = drawing = self.drawn.passes
        # One process of a team computes; splitting a block's batches would not pay the exchange.
        if self.team.first:
            yield from self._scrub(drawing)
            if self.found is not None and self.found.offsets:
                yield from self._relabel(self.found, drawing + passes_of(self.spec))
        self.found = self.team.of_first(self.found)
        if self.found is None or not self.found.offsets:  # said by all of a team
            raise SpecError(
                f"nothing in the pictures of {self.spec.name!r} stands out from those of others",
                remedy="check that the model knows the concept, or raise {passes}",
            )

    def _scrub(self, before: int) -> Iterator[tuple[int, str]]:
        assert self.drawn is not None
        work = self._work = self._scrubbing(self.drawn)
        share = passes_of(self.spec)
        for report in work:
            self.passes = before + work.passes
            done = before + round(share * report.done / report.total)
            if f"{HERE}done" not in self.begun:  # else all of this was done before
                yield done, f"{STAGE} {report.block}".rstrip()
        self.found = Scrubbed(offsets_of(work.edits), *standing(work), self.passes)

    def _relabel(self, scrubbed: Scrubbed, before: int) -> Iterator[tuple[int, str]]:
        assert self._work is not None
        training, passes = self._relabelling(scrubbed, self._work.order), scrubbed.passes
        self._training, plan = training, training.plan
        for done in training:
            self.passes = passes + plan.passes * done // plan.steps
            self.backward = plan.backward * done // plan.steps
            yield before + relabelling_work(self.spec) * done // plan.steps, RELABELLING
        self.passes, self.backward = passes + plan.passes, plan.backward
        self.found = replace(
            scrubbed, offsets=training.offsets, passes=self.passes, backward=self.backward
        )

    def _draw(self) -> Iterator[tuple[int, str]]:
        """Draw what is not drawn yet."""
        if self.drawn is not None and self.drawn.over:
            return
        model, spec = self.model, self.spec
        pictures = draw(
            model.denoiser, self.cond, self.uncond, recipe_of(spec).sampler, model.latent_size,
            spec.seed, model.at_once, self.team, self.drawn, self.lists.noises,
        )  # fmt: skip
        for self.drawn in pictures:
            self.passes = self.drawn.passes
            yield self.passes, "drawing"

    def _scrubbing(self, drawn: Recording) -> Scrubbing:
        lent, recipe, lists = self.model.denoiser, recipe_of(self.spec), self.lists
        concepts, rest, _ = lists.places
        pictures = Drawn.of(drawn, self.cond).rows(torch.tensor([*concepts, *rest]))
        kinds = noised(lent, self.uncond, pictures, lists.counts, recipe, self.spec.seed)
        plan = ScrubPlan(batch=_rows(self.model))
        return Scrubbing(lent, *kinds, plan, begun=_taken_up(self.begun))

    def _relabelling(self, scrubbed: Scrubbed, order: Sequence[Block]) -> Relabelling:
        assert self.drawn is not None
        pictures, lent = Drawn.of(self.drawn, self.cond), self.model.denoiser
        plan = relabel_plan(self.spec)
        concepts, rest, anchors = (pictures.rows(torch.tensor(p)) for p in self.lists.places)
        large = sum(p.numel() for p in lent.module.parameters()) > LARGE
        blocks = innermost(lent.module, order) if large else []
        rows = TOGETHER_BACK if large else min(plan.batch, _rows(self.model))
        begun = {k.removeprefix(HERE): t for k, t in self.begun.items() if k.startswith(HERE)}
        return Relabelling(
            lent, scrubbed.offsets, concepts, anchors, rest, self.uncond,
            plan, self.spec.seed, rows, blocks, self.model.in_place, begun,
        )  # fmt: skip

    @property
    def kept(self) -> dict[str, Tensor]:
        """Return what going on needs: blocks that are done, their edits, and what trains them."""
        kept = kept_of(self._work) if self._work is not None else {}
        own = self._training.kept if self._training is not None else {}
        return {**kept, **{f"{HERE}{name}": tensor for name, tensor in own.items()}}


def lists_of(spec: UnlearnSpec, prompts: PromptSet) -> PictureLists:
    """Choose what a run draws: every concept alone, and what must stay."""
    return picture_lists(spec.concepts, prompts, recipe_of(spec).counts, spec.stays)


def _rows(model: LentModel) -> int:
    """Count the samples of a pass: no more than drawing takes, guided."""
    return min(ScrubPlan().batch, 2 * model.at_once)


def kept_of(work: Scrubbing) -> dict[str, Tensor]:
    """Return the blocks that are done, and their edits."""
    kept = {"done": torch.tensor(work.blocks_done)}
    for key, edit in work.edits.items():
        parts = (edit.up, edit.down, edit.lambdas, torch.tensor(edit.harm, dtype=torch.float64))
        kept |= {f"{part}.{key}": t for part, t in zip(PARTS, parts, strict=True)}
    return kept


def _taken_up(kept: Mapping[str, Tensor]) -> tuple[int, dict[str, Edit]] | None:
    if "done" not in kept:
        return None
    keys = [name.removeprefix("up.") for name in kept if name.startswith("up.")]
    edits = {}
    for key in keys:
        up, down, lambdas, harm = (kept[f"{part}.{key}"] for part in PARTS)
        edits[key] = Edit(up, down, lambdas, float(harm))
    return int(kept["done"]), edits


def offsets_of(edits: Mapping[str, Edit]) -> dict[str, LowRankOffset]:
    """Return the edits as a diff holds them."""
    return {key: LowRankOffset(edit.up, edit.down) for key, edit in edits.items()}


def standing(work: Scrubbing) -> tuple[float, float]:
    """Tell what is left of what stood out, 0..1, and the harm so far: a sum of layers' shares."""
    edits = work.edits.values()
    found = fsum(float(edit.lambdas.sum()) for edit in edits)  # the same in any order
    left = float(work.directions if work.plan.soft else 0)
    return left / found if found else 1.0, fsum(edit.harm for edit in edits)


def drawing_passes(spec: UnlearnSpec, lists: PictureLists) -> int:
    """Count the UNet passes, one sample each, that drawing takes."""
    return recipe_of(spec).sampler.passes(len(lists.prompts))


def passes_of(spec: UnlearnSpec) -> int:
    """Count the UNet passes, one sample each, that scrubbing takes after drawing."""
    return 2 * recipe_of(spec).samples(len(spec.concepts))


def memory_of(model: LentModel, spec: UnlearnSpec) -> int:
    """Estimate the bytes of main memory that a scrubbing takes: moments, and blocks' outputs."""
    denoiser, size = model.denoiser, model.latent_size
    layers = weights_by_block(denoiser).values()
    own = [
        4 * sum(_width(weight) ** 2 for key, weight in block.items() if not key.endswith(TOGETHER))
        for block in layers
    ]
    kinds, concepts = 1 + len(spec.concepts), len(spec.concepts)
    moments = kinds * max(own)
    solved = 6 * 8 * max(_width(weight) ** 2 for block in layers for weight in block.values())
    first = min(weight.shape[0] for block in layers for weight in block.values())
    samples = recipe_of(spec).samples(concepts)
    each = STORED * first * prod(size) * compute_dtype(denoiser.module).itemsize
    return moments + solved + round(min(ScrubPlan().memory, samples * each))


def relabel_plan(spec: UnlearnSpec) -> RelabelPlan:
    """Return how the scrubbed layers are relabelled: in as many steps as training takes its part.

    Of several concepts each has its share.
    """
    usual = RelabelPlan()
    return replace(
        usual, steps=max(2, round(usual.steps * resolve(spec).steps / DEFAULTS["steps"]))
    )


def work_behind(spec: UnlearnSpec, blocks: int, kept: Mapping[str, Tensor]) -> float:
    """Count the units of work after drawing that a run which kept this has behind it."""
    scrubbed, relabelled = (int(kept.get(name, 0)) for name in ("done", f"{HERE}done"))
    trained = relabelling_work(spec) * relabelled / relabel_plan(spec).steps
    return passes_of(spec) * scrubbed / blocks + trained


def relabelling_work(spec: UnlearnSpec) -> int:
    """Count the units of work of relabelling: a pass, of which one back takes `BACK`."""
    plan = relabel_plan(spec)
    return plan.passes + BACK * plan.backward


def flops_of(denoiser: Denoiser, spec: UnlearnSpec) -> float:
    """Estimate the float64 operations of all eigenproblems."""
    widths: Sequence[int] = [
        _width(weight)
        for block in weights_by_block(denoiser).values()
        for key, weight in block.items()
        if not key.endswith(TOGETHER)
    ]
    return len(spec.concepts) * sum(map(operations, widths))


def _width(weight: Tensor) -> int:
    return weight.shape[1]
