"""The audit as a job on the host's model, and the page it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trust_engine.audit import Audit, Topic, demo_topic, open_topic, pick_level, render_page
from trust_engine.audit.judges.base import check_judge, load_aligner, load_judge
from trust_engine.diff.apply import STRONGEST
from trust_engine.errors import SpecError
from trust_engine.io.files import write_atomically
from trust_engine.models.load import LoadedModel
from trust_engine.spec import ConceptSpec, in_range

from . import applying, folders
from .applying import Wanted
from .host import Host, current
from .jobs import Job

LEVELS = ("pictures only", "quick", "full")
SHOWN = ("ua", "synonyms", "ira", "cra_style", "cra_background")


class HostDecoder(nn.Module):
    """The host's VAE as the engine's decoder: latents (b, 4, h, w) -> (b, 3, 8h, 8w) in -1..1."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host

    def forward(self, latents: Tensor) -> Tensor:
        """Decode a batch."""
        return self.host.decode(latents)


@dataclass(frozen=True)
class Question:
    """What to audit: a diff, the concept it should have removed, who judges, and how hard.

    retain: what should stay and the judge looks for; level: one of LEVELS; images: an object.
    """

    diff: str
    concept: ConceptSpec
    judge: str
    level: str = LEVELS[0]
    images: int = 4
    retain: tuple[str, ...] = ()
    strength: float = 1.0
    resolution: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        in_range("strength", self.strength, -STRONGEST, STRONGEST)
        in_range("images", self.images, 1, 140, whole=True)
        if self.level not in LEVELS:
            raise SpecError(f"level {self.level!r} is unknown; use one of {', '.join(LEVELS)}")
        check_judge(self.judge)
        folders.found(self.diff)

    @property
    def topic(self) -> Topic:
        """Say what the judge is to look for; raises SpecError for what it cannot tell."""
        concept, word = self.concept, self.concept.words[0]
        if self.judge == "demo":
            return demo_topic(word, concept.kind, concept.companion, concept.condition)
        return open_topic(
            word, concept.kind, concept.companion, concept.condition,
            concept.words[1:], self.retain,
        )  # fmt: skip


@dataclass(frozen=True)
class Audited:
    """A finished audit: its figures, the page with pictures, and the verdict."""

    figures: dict[str, Any]
    page: Path

    @property
    def verdict(self) -> str:
        """Return the verdict in words."""
        return str(self.figures["verdict"])

    @property
    def label(self) -> dict[str, Any]:
        """Return what a diff's label shows of it."""
        told = self.figures
        shown = {k: told[k] for k in SHOWN if isinstance(told.get(k), dict) and told[k]["n"]}
        about = {"level": told["level"], "judge": told["judge"]["name"]}
        return {**shown, **about, "verdict": told["verdict"]}

    def to_dict(self) -> dict[str, Any]:
        """Spell out what the API tells."""
        return {"figures": self.figures, "page": self.page.name, "verdict": self.verdict}


def audit(question: Question) -> Callable[[Job], Audited]:
    """Return the job that audits a diff and writes the page."""

    def work(job: Job) -> Audited:
        host = current()
        folders.ready(folders.audits())
        with host.borrowed() as said:
            job.said += said
            done = applying.prepare(host, [Wanted(question.diff, question.strength)])
            job.said += done.warnings
            host.bring()
            run = _audit(host, question, [(part.diff, part.strength) for part in done.parts])
            _follow(host, job, run)
        name = f"{question.diff.rpartition('/')[2].removesuffix(folders.SUFFIX)}-audit"
        page = folders.fresh(folders.audits(), name, ".html")
        write_atomically(page, render_page(run.report).encode())
        return Audited(run.report.figures, page)

    return work


def _audit(host: Host, question: Question, diffs: Iterable[tuple[Any, float]]) -> Audit:
    lent, topic = host.lend(question.resolution), question.topic
    model = LoadedModel(
        lent.denoiser, lent.encoder, HostDecoder(host), lent.latent_size,  # type: ignore[arg-type]
        tuple(lent.vocabulary), tuple(lent.styles), host.family.unet.name,
    )  # fmt: skip
    judge = load_judge(question.judge, topic, "cpu")
    level = pick_level("quick" if question.level == LEVELS[0] else question.level)
    if question.level == LEVELS[0]:
        level = replace(level, name=LEVELS[0], attacks=())
    return Audit(model, judge, list(diffs), topic, level, question.images, question.seed,
                 aligner=load_aligner(question.judge, judge))  # fmt: skip


def _follow(host: Host, job: Job, run: Audit) -> None:
    steps, total = iter(run), run.total
    job.tick(0, total, "drawing")
    while True:
        with host.stepping():  # attacks take gradients through the UNet
            step = next(steps, None)
        if step is None:
            break
        job.tick(step.done, step.total, step.stage)
