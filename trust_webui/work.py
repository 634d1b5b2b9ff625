"""What jobs do with the host's model: unlearn, and pictures before and after."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trust_engine.diff import Rounding, WeightDiff, save_diff
from trust_engine.diff.apply import add
from trust_engine.errors import SpecError
from trust_engine.frontend.charts import chart
from trust_engine.frontend.pictures import neuron_map
from trust_engine.frontend.wording import some
from trust_engine.models.denoiser import ModuleDenoiser
from trust_engine.models.lent import LentModel
from trust_engine.models.parameters import exchanged
from trust_engine.models.sampler import SamplerSettings, ddim, initial_noise
from trust_engine.settings import in_range
from trust_engine.spec import UnlearnSpec
from trust_engine.unlearn.resolve import followed
from trust_engine.unlearn.run import StepReport, Unlearning

from . import folders
from .host import Host, current
from .jobs import Job
from .lines import one_line

log = logging.getLogger(__name__)
SEED = 500_000  # pictures shown start apart from the engine's seeds, which are near zero
SIDE = 384  # pixels of a picture in the gallery
GRAIN, LARGEST = 64, 2048  # pixels, of the side of a picture
LONGEST_NAME = 200  # characters, of a diff's name; the file's is cut


@dataclass(frozen=True)
class Order:
    """What is asked for: the spec, the side in pixels (0: the usual one), pictures, a file name."""

    spec: UnlearnSpec
    resolution: int = 0
    pictures: int = 4
    name: str = ""

    def __post_init__(self) -> None:
        check_resolution(self.resolution)
        in_range("pictures", self.pictures, 0, 16, whole=True)
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
    neurons: Image.Image
    report: str
    gallery: list[tuple[Image.Image, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Spell out what the API tells."""
        return {
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
            lent = host.lend(order.resolution, job.check)
            run = Unlearning(lent, order.spec)
            _encode_all(lent, run)
            host.bring()
            _check_engine(host, order.spec)
            _follow(host, job, run, order.pictures)
            diff = run.diff
            path = folders.fresh(folders.diffs(), order.name or order.spec.name)
            save_diff(diff, path)
            log.info("TRUST: %s unlearned, %s written", order.spec.name, path)
            gallery = before_after(host, job, lent, run, diff, order.pictures)
        drawn = neuron_map("Where the concept neurons sit", run.neurons)
        curves = chart(f"Unlearning {order.spec.name}", job.curves, followed(order.spec).steps)
        report = _report(job, run, diff, path)
        return Unlearned(order.spec, diff, path, curves, drawn, report, gallery)

    return work


def _encode_all(lent: LentModel, run: Unlearning) -> None:
    """Encode while the text encoder may have the GPU; what is encoded is remembered.

    It is encoded prompt by prompt, and between two of them the job can be stopped.
    """
    prompts = run.prompts
    lent.encoder.encode([*prompts.targets, *prompts.anchors, *prompts.preserve, ""])


def _check_engine(host: Host, spec: UnlearnSpec) -> None:
    """Refuse what goes wrong without a word where blocks write in place."""
    if host.in_place and spec.through_unet and (spec.checkpointing or spec.exact_hessian):
        raise SpecError(
            f"{host.name}'s UNet writes in place: through it neither checkpointing nor an exact "
            "Hessian can be had; switch checkpointing off and hessian to finite"
        )


def _follow(host: Host, job: Job, run: Unlearning, pictures: int) -> None:
    """Iterate a run to its end."""
    total = run.total + drawing_passes(pictures)
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    reports = iter(run)
    while True:
        with host.stepping() if run.spec.through_unet else contextlib.nullcontext():
            report = next(reports, None)
        if report is None:
            break
        _note(curves, report)
        job.curves = dict(curves)
        job.tick(report.done, total, report.stage)


def _note(curves: dict[str, list[tuple[float, float]]], report: StepReport) -> None:
    if report.standing is not None:
        piece = report.stage.removeprefix("unlearning ")
        here = (round(report.standing.effect, 4), round(report.standing.harm, 4))
        curves[piece].append(here)


def drawing_passes(pictures: int) -> int:
    """Count UNet passes of drawing pictures without and with a diff."""
    return 2 * SamplerSettings().passes(pictures)


def before_after(
    host: Host, job: Job, lent: LentModel, run: Unlearning, diff: WeightDiff, pictures: int
) -> list[tuple[Image.Image, str]]:
    """Draw what is forgotten and what stays, before and after, same seeds, in pairs."""
    if not pictures:
        return []
    count = (pictures + 1) // 2
    prompts = list(dict.fromkeys(run.prompts.targets))[:count]
    prompts += list(dict.fromkeys(run.prompts.preserve))[: pictures - len(prompts)]
    done = [run.total]
    total = run.total + drawing_passes(pictures)

    def on_step(passes: int, stage: str) -> None:
        done[0] = min(total, done[0] + passes)
        job.tick(done[0], total, stage)

    drawn = []
    for diffs, when in ((), "before"), (((diff, 1.0),), "after"):
        stage = f"drawing {when}"
        host.bring()
        with under(lent.denoiser, diffs):  # type: ignore[arg-type]
            latents = draw(lent, prompts, run.spec.seed, lambda n, s=stage: on_step(n, s))
        drawn.append([(image, when) for image in as_images(_decoded(host, job, latents))])
    pairs = zip(prompts, *drawn, strict=True)
    return [(image, f"{when}: {p}") for p, *both in pairs for image, when in both]


def _decoded(host: Host, job: Job, latents: Tensor) -> Tensor:
    """Decode pictures one by one, and let the job be stopped between two."""
    made = []
    for row in latents:
        job.check()
        made.append(host.decode(row[None]))
    return torch.cat(made)


def draw(
    lent: LentModel, prompts: Sequence[str], seed: int, on_step: Callable[[int], None]
) -> Tensor:
    """Draw one picture a prompt by the engine's sampler; returns latents (b, 4, h, w)."""
    settings = SamplerSettings()
    uncond = lent.encoder.encode([""])
    made = []
    for i, prompt in enumerate(prompts):  # one by one: that always fits
        cond = lent.encoder.encode([prompt])
        x = initial_noise([SEED + seed + i], lent.latent_size)
        for _, latents in ddim(lent.denoiser, x, cond, uncond, settings):
            x = latents
            on_step(settings.passes(1) // settings.steps)
        made.append(x.float().cpu())
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


def _report(job: Job, run: Unlearning, diff: WeightDiff, path: Path) -> str:
    """Say what was done; a run's own figures are no audit, and it says so."""
    final = run.final.values()
    effect = sum(here.effect for here in final) / max(1, len(final))
    harm = sum(here.harm for here in final) / max(1, len(final))
    kept = some(run.prompts.kept)
    rows = [
        f"Forgot: {run.spec.name}. Saved as {path.name}.",
        f"Effect left: {effect:.1%} of the start. Change of what must stay: {harm:.1%} of the "
        "concept's effect. These are the run's own figures; the audit looks at pictures.",
        f"Changed {diff.changed:,} entries, {diff.share:.2%} of the weights that it touches, in "
        f"{job.seconds:.0f} s and {run.passes} UNet passes.",
        f"Preserved: {kept}.",
        *job.said,
    ]
    return "\n".join(rows)
