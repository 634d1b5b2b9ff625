"""What jobs do with the host's model: unlearn, and pictures before and after."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trust_engine.diff import Rounding, WeightDiff
from trust_engine.diff.apply import add
from trust_engine.errors import SpecError, TrustError
from trust_engine.frontend.before_after import BeforeAfter, compared, judge_for
from trust_engine.frontend.charts import chart, where
from trust_engine.frontend.run_report import RunReport, run_report
from trust_engine.frontend.subjects import COUNT, MOST, Subject, draw, passes, subjects
from trust_engine.models.contract import Conditioning, LentModel, ModuleDenoiser
from trust_engine.models.identity import probe
from trust_engine.models.parameters import exchanged
from trust_engine.settings import in_range
from trust_engine.spec import UnlearnSpec
from trust_engine.unlearn.autosave import Keeping, save_or_rescue
from trust_engine.unlearn.run import StepReport, Unlearning

from . import folders, runs
from .host import Host, current
from .jobs import Job
from .one_line import one_line

log = logging.getLogger(__name__)
SIDE = 384  # pixels of a picture in the gallery
GRAIN, LARGEST = 64, 2048  # pixels, of the side of a picture
Asked = tuple[Subject, ...]
LONGEST_NAME = 200  # characters, of a diff's name; the file's is cut


@dataclass(frozen=True)
class Order:
    """What is asked for: the spec, the side in pixels (0: the usual one), pictures, a file name."""

    spec: UnlearnSpec
    resolution: int = 0
    pictures: int = COUNT
    name: str = ""

    def __post_init__(self) -> None:
        check_resolution(self.resolution)
        in_range("pictures", self.pictures, 0, MOST, whole=True)
        if not isinstance(self.name, str) or not self.name.isprintable():
            raise SpecError(f"{one_line(repr(self.name), 60)} is no name for a file")
        if len(self.name) > LONGEST_NAME:
            raise SpecError(f"the name has {len(self.name)} characters; use at most "
                            f"{LONGEST_NAME}")  # fmt: skip


def check_resolution(side: Any) -> None:
    """Raise SpecError unless it is 0, the usual size, or a side in pixels that a UNet can draw."""
    in_range("resolution", side, 0, LARGEST, whole=True)
    if side % GRAIN:  # its stages halve the picture: other sides do not fit together again
        raise SpecError(f"resolution is {side}; it must be 0 or a multiple of {GRAIN} up to "
                        f"{LARGEST}")  # fmt: skip


@dataclass
class Unlearned:
    """What came of it: the diff and its file, pictures, and a report in words."""

    spec: UnlearnSpec
    diff: WeightDiff
    path: Path
    chart: Image.Image
    neurons: Image.Image | None
    told: RunReport
    gallery: list[tuple[Image.Image, str]] = field(default_factory=list)

    @property
    def report(self) -> str:
        """Return the report, its headline first."""
        return str(self.told)

    def to_dict(self) -> dict[str, Any]:
        """Spell out what the API tells."""
        return {
            "headline": self.told.headline,
            "failed": self.told.failed,
            "diff": self.path.relative_to(folders.diffs()).as_posix(),
            "concept": self.spec.name,
            "entries_changed": self.diff.changed,
            "share_changed": round(self.diff.share, 5),
            "report": self.report,
        }


def unlearn(order: Order) -> Callable[[Job], Unlearned]:
    """Return the job that unlearns and saves the diff."""

    def work(job: Job) -> Unlearned:
        host = current()
        folders.ready(folders.diffs())  # not first known when all is computed
        with host.borrowed() as said:
            job.said += said
            job.at("reading prompts")
            lent = known_again(host.lend(order.resolution, job.check))
            run = Unlearning(lent, order.spec)
            lent = run.model  # its encoder reads prompts as the spec asks
            asked = subjects(order.spec, run.prompts, lent.vocabulary, lent.styles, order.pictures)
            _encode_all(run, asked)
            host.bring()
            _check_engine(host, order.spec)
            with Keeping(run, runs.store(), say=lambda text: _note(job, text)) as kept:
                _ask(host, job, run, asked)
                _follow(host, job, kept, passes(len(asked), order.spec.sampling))
                diff = run.diff
                path = folders.fresh(folders.diffs(), order.name or order.spec.name)
                save_or_rescue(diff, path, kept.store)
            log.info("TRUST: %s unlearned, %s written", order.spec.name, path)
            seen, missed = look(host, job, lent, run, diff, asked)
        drawn = where(run)
        curves = chart(f"Unlearning {order.spec.name}", job.curves, run.steps)
        said = [f"Saved as {path.name}.", *missed, *job.said]
        told = run_report(run, diff, seen, job.seconds, said)
        return Unlearned(order.spec, diff, path, curves, drawn, told, shown(seen))

    return work


def known_again(lent: LentModel) -> LentModel:
    """Let a run be known by what the host's UNet predicts, too, and not by its weights alone."""

    def probed(cond: Conditioning) -> str:
        return probe(lent.denoiser, cond, lent.latent_size)

    return replace(lent, more=probed)


def _note(job: Job, text: str) -> None:
    log.info("TRUST: %s", text)
    job.said.append(f"{text[0].upper()}{text[1:]}.")


def _encode_all(run: Unlearning, asked: Asked) -> None:
    """Encode while the text encoder may have the GPU; what is encoded is remembered.

    It is encoded prompt by prompt, and between two of them the job can be stopped.
    """
    drawn = [subject.prompt for subject in asked]
    run.model.encoder.encode([*run.questions, *run.texts, *drawn, ""])


def _ask(host: Host, job: Job, run: Unlearning, asked: Asked) -> None:
    """Find out what the model knows of the words before anything is recorded; the report says it.

    Reads on what takes the place of words that mean the concept.
    """
    for report in run.ask():
        job.tick(report.done, report.total, report.stage)
    if run.knowledge is not None and (run.knowledge.same or run.knowledge.unknown):
        _encode_all(run, asked)
        host.bring()


def _check_engine(host: Host, spec: UnlearnSpec) -> None:
    """Refuse what goes wrong without a word where blocks write in place."""
    if host.in_place and spec.through_unet and (spec.checkpointing or spec.exact_hessian):
        raise SpecError(
            f"{host.name}'s UNet writes in place: through it neither checkpointing nor an exact "
            "Hessian can be had; switch checkpointing off, and leave ablation.hessian at auto"
        )


def _follow(host: Host, job: Job, kept: Keeping, drawing: int) -> None:
    """Iterate a run to its end; drawing: UNet passes that come after it."""
    run = kept.run
    total = run.total + drawing
    curves: dict[str, list[tuple[float, float]]] = {}
    reports = iter(kept)
    while True:
        with host.stepping() if run.spec.whole_unet else contextlib.nullcontext():
            report = next(reports, None)
        if report is None:
            break
        _note_curves(curves, run, report)
        job.curves = dict(curves)
        job.tick(report.done, total, report.stage)


def _note_curves(
    curves: dict[str, list[tuple[float, float]]], run: Unlearning, report: StepReport
) -> None:
    """Add what is new, rounded; of a run that goes on also what is old."""
    for piece, curve in run.curves.items():
        if piece not in curves:
            curves[piece] = [(round(e, 4), round(h, 4)) for e, h in curve]
        elif report.standing is not None and report.stage == f"unlearning {piece}":
            curves[piece].append((round(curve[-1][0], 4), round(curve[-1][1], 4)))


def look(
    host: Host, job: Job, lent: LentModel, run: Unlearning, diff: WeightDiff, asked: Asked
) -> tuple[BeforeAfter | None, list[str]]:
    """Draw test pictures without and with a saved diff; what keeps us from it is said, no more."""
    if not asked:
        return None, []
    try:
        return _looked(host, job, lent, run, diff, asked), []
    except (TrustError, MemoryError, torch.cuda.OutOfMemoryError) as error:
        return None, [f"No test pictures: {one_line(error, 200)}. The diff is saved."]


def _looked(
    host: Host, job: Job, lent: LentModel, run: Unlearning, diff: WeightDiff, asked: Asked
) -> BeforeAfter:
    judge = judge_for(host.family.unet.name, asked)
    how = run.spec.sampling
    done, total, drawn = run.total, run.total + passes(len(asked), how), []
    for diffs, stage in ((), "drawing before"), (((diff, 1.0),), "drawing after"):

        def on_pass(made: int, stage: str = stage) -> None:
            nonlocal done
            done = min(total, done + made)
            job.tick(done, total, stage)

        host.bring()
        with under(lent.denoiser, diffs):  # type: ignore[arg-type]
            # One by one: that always fits.
            size = lent.latent_size
            drawn.append(draw(lent.denoiser, lent.encoder, size, asked, on_pass, 1, how))
    return compared(asked, *drawn, judge, lambda latents: _decoded(host, job, latents), how)


def shown(seen: BeforeAfter | None) -> list[tuple[Image.Image, str]]:
    """Lay test pictures out in pairs, with captions."""
    if seen is None or seen.before is None or seen.after is None:
        return []
    pairs = zip(seen.seen, as_images(seen.before), as_images(seen.after), strict=True)
    return [
        (image, f"{when}: {one.subject.prompt}")
        for one, before, after in pairs
        for image, when in ((before, "before"), (after, "after"))
    ]


def _decoded(host: Host, job: Job, latents: Tensor) -> Tensor:
    """Decode pictures one by one, and let the job be stopped between two."""
    made = []
    for row in latents:
        job.check()
        made.append(host.decode(row[None]))
    return torch.cat(made)


@contextlib.contextmanager
def under(
    denoiser: ModuleDenoiser, diffs: Sequence[tuple[WeightDiff, float]]
) -> Iterator[Rounding]:
    """Let a UNet compute under diffs for a while; its own weights are not written to."""
    parameters = dict(denoiser.module.named_parameters())
    lost, instead = Rounding(), {}
    with torch.inference_mode(False), torch.no_grad():
        for diff, strength in diffs:
            for key, offset in diff.offsets.items():
                name = denoiser.parameter_name(key)
                if name not in instead:
                    instead[name] = parameters[name].detach().clone()
                for _ in add(instead[name], offset, strength, lost, key):
                    pass
    frozen = {name: torch.nn.Parameter(w, requires_grad=False) for name, w in instead.items()}
    with exchanged(denoiser.module, frozen):
        yield lost


def as_images(pixels: Tensor) -> list[Image.Image]:
    """Turn pictures (b, 3, h, w) in -1..1 into PIL pictures of one handy size."""
    arrays = ((pixels.movedim(1, -1) + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    images = [Image.fromarray(np.ascontiguousarray(row)) for row in arrays.cpu().numpy()]
    return [image.resize((SIDE, SIDE), Image.LANCZOS) for image in images]
