"""Robust mode: what a spec asks for as a scrubbing, and what a run keeps of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum, prod

import torch
from torch import Tensor

from ...diff import LowRankOffset
from ...models.contract import Conditioning, Denoiser, LentModel, compute_dtype
from ...prompts.concept import PromptSet
from ...spec import UnlearnSpec
from ..trainer import Metrics
from ..trajectory import Recording
from .blocks import TOGETHER, weights_by_block
from .directions import Edit
from .lists import PictureLists, picture_lists
from .pictures import noised, recipe_of
from .run import Scrubbing, ScrubPlan
from .samples import Drawn

UNIT = "the UNet"
STORED = 4.25  # numbers a sample, times the first width and the latent's size (docs, "Cost")
PARTS = ("up", "down", "lambdas", "harm")


def lists_of(spec: UnlearnSpec, prompts: PromptSet) -> PictureLists:
    """Choose what a run draws: every concept alone, and what must stay."""
    return picture_lists(spec.concepts, prompts, recipe_of(spec).counts)


def scrubbing_of(
    model: LentModel,
    spec: UnlearnSpec,
    lists: PictureLists,
    drawn: Recording,
    cond: Conditioning,
    uncond: Conditioning,
    begun: Mapping[str, Tensor],
) -> Scrubbing:
    """Prepare a run's scrubbing on what it drew; begun: `kept_of` one that was stopped, or {}."""
    lent, recipe = model.denoiser, recipe_of(spec)
    kinds = noised(lent, uncond, Drawn.of(drawn, cond), lists.counts, recipe, spec.seed)
    plan = ScrubPlan(batch=_rows(model))
    return Scrubbing(lent, *kinds, plan, begun=_taken_up(begun))


def _rows(model: LentModel) -> int:
    """Count the samples of a pass: no more than drawing takes, guided."""
    return min(ScrubPlan().batch, 2 * model.at_once)


def kept_of(work: Scrubbing) -> dict[str, Tensor]:
    """Return what going on needs: blocks that are done, and their edits."""
    kept = {"done": torch.tensor(work.blocks_done)}
    for key, edit in work.edits.items():
        parts = (edit.up, edit.down, edit.lambdas, torch.tensor(edit.harm, dtype=torch.float64))
        kept |= {f"{part}.{key}": t for part, t in zip(PARTS, parts, strict=True)}
    return kept


def _taken_up(kept: Mapping[str, Tensor]) -> tuple[int, dict[str, Edit]] | None:
    if not kept:
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


def standing(work: Scrubbing) -> Metrics:
    """Tell where it stands.

    effect: the energy that is left in the directions that stand out, 1 at the start, what is not
    done yet counted as left; harm: the shares of the rest's output energy that layers change, added
    up; share: directions of all in these layers.
    """
    edits = work.edits.values()
    found = fsum(float(edit.lambdas.sum()) for edit in edits)  # the same in any order
    left = float(work.directions if work.plan.soft else 0)
    channels = sum(edit.down.shape[1] for edit in edits)
    taken = 1 - left / found if found else 0.0
    return Metrics(
        1 - taken * work.blocks_done / max(1, work.blocks),
        fsum(edit.harm for edit in edits),
        work.directions / max(1, channels),
        1.0,
    )


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
    solved = 4 * 8 * max(_width(weight) ** 2 for block in layers for weight in block.values())
    first = min(weight.shape[0] for block in layers for weight in block.values())
    samples = recipe_of(spec).samples(concepts)
    each = STORED * first * prod(size) * compute_dtype(denoiser.module).itemsize
    return moments + solved + round(min(ScrubPlan().memory, samples * each))


def flops_of(denoiser: Denoiser, spec: UnlearnSpec) -> float:
    """Estimate the float64 operations of all eigenproblems, about 12 d^3 for one of width d."""
    widths: Sequence[int] = [
        _width(weight)
        for block in weights_by_block(denoiser).values()
        for key, weight in block.items()
        if not key.endswith(TOGETHER)
    ]
    return len(spec.concepts) * 12.0 * sum(d**3 for d in widths)


def _width(weight: Tensor) -> int:
    return weight.shape[1]
