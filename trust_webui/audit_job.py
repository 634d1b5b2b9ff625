"""The audit as a job on the host's model, and the page it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trust_engine.audit import Audit, Level, pick_level, render_page
from trust_engine.audit.judges.catalogue import check_judge, forms
from trust_engine.audit.request import AuditRequest
from trust_engine.diff import WeightDiff
from trust_engine.errors import SpecError
from trust_engine.io.files import write_atomically
from trust_engine.models.load import LoadedModel
from trust_engine.phrases import bare
from trust_engine.settings import in_range
from trust_engine.spec import ConceptSpec

from . import applying, folders, runs
from .asked_diffs import Wanted
from .host import Host, current
from .jobs import Job
from .one_line import one_line
from .unlearn_job import check_resolution

LEVELS = ("pictures only", "quick", "full")
SHOWN = ("ua", "synonyms", "ira", "cra_style", "cra_background")
DEEPEST = 4  # merges of merges whose parts are read
LARGEST_SEED = 2**63 - 1
RETAINED = 100  # things that a judge is asked to look for


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
        if not isinstance(self.judge, str) or not self.judge.isprintable():
            raise SpecError(f"judge must be a text: {forms()}")
        Wanted(self.diff, self.strength)
        in_range("images", self.images, 1, 140, whole=True)
        in_range("seed", self.seed, 0, LARGEST_SEED, whole=True)
        check_resolution(self.resolution)
        if self.level not in LEVELS:
            raise SpecError(f"level {self.level!r} is unknown; use one of {', '.join(LEVELS)}")
        self._check_retained()
        try:
            check_judge(self.judge)
        except (OSError, ValueError) as error:  # a path that no file system takes
            raise SpecError(f"judge {one_line(self.judge, 60)}: {one_line(error, 120)}") from error
        folders.found(self.diff)
        _ = self.request

    def _check_retained(self) -> None:
        if len(self.retain) > RETAINED or not all(
            isinstance(name, str) and name.strip() for name in self.retain
        ):
            raise SpecError(f"retain must be a list of at most {RETAINED} texts")
        if self.retain and self.judge == "demo":
            raise SpecError("what should stay is named, but the demo's judge looks for all that it "
                            "knows; leave it empty, or name another judge")  # fmt: skip

    @property
    def request(self) -> AuditRequest:
        """Say what the judge is to look for, and how hard; raises SpecError for what cannot be."""
        level: Level = pick_level("quick" if self.level == LEVELS[0] else self.level)
        if self.level == LEVELS[0]:
            level = replace(level, name=LEVELS[0], attacks=())
        about = (self.concept, self.judge, level, self.images, self.seed)
        return AuditRequest(*about, retain=self.retain)


def concepts_of(diff: WeightDiff) -> list[ConceptSpec]:
    """Name what a diff forgets, by its label; of a merged one what its parts forget."""
    return list(dict.fromkeys(_concepts(diff.provenance)))


def _concepts(provenance: Mapping[str, Any], depth: int = 0) -> Iterator[ConceptSpec]:
    parts = provenance.get("parts")
    if isinstance(parts, list):
        for part in parts if depth < DEEPEST else ():
            if isinstance(part, dict) and _removes(part.get("strength", 1.0)):
                yield from _concepts(part, depth + 1)
        return
    try:
        spec = json.loads(provenance["spec"])
        listed = spec.get("concepts") or [spec.get("concept")]
        for told in listed:
            yield ConceptSpec(
                tuple(told["words"]), told.get("kind") or "single",
                told.get("companion"), told.get("condition"),
            )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, SpecError):
        return  # written by a stranger, or by another version


def _removes(strength: Any) -> bool:
    return isinstance(strength, int | float) and strength > 0


def asked_about(name: str, told: ConceptSpec | None = None) -> ConceptSpec:
    """Return what a diff is to be audited for: what its label says, or one of those told.

    Raises SpecError for words that are not the diff's: its figures would be another's.
    """
    known = concepts_of(applying.load(name)[0])
    names = "; ".join(one.name for one in known)
    if told is None and len(known) == 1:
        return known[0]
    if told is None and known:
        raise SpecError(f"{name} forgets {names}: say for which of them it is audited")
    if told is None:
        raise SpecError(f"{name} does not say what it forgets: name it")
    if known and not any(_same(told, one) for one in known):
        raise SpecError(f"{name} forgets {names}, not {told.name}: audit it for what it forgets, "
                        "or choose another diff")  # fmt: skip
    return told


def _same(told: ConceptSpec, known: ConceptSpec) -> bool:
    partners = [bare((one.companion or one.condition or "").strip()) for one in (told, known)]
    alike = told.kind == known.kind and partners[0] == partners[1]
    return alike and bare(told.words[0]) in map(bare, known.words)


@dataclass(frozen=True)
class Audited:
    """A finished audit: figures, the page with pictures, the verdict, and what it holds for.

    sha: of the diff's content; base: the checkpoint's fingerprint.
    """

    figures: dict[str, Any]
    page: Path
    sha: str
    strength: float
    base: str

    @property
    def verdict(self) -> str:
        """Return the verdict in words."""
        return str(self.figures["verdict"])

    @property
    def label(self) -> dict[str, Any]:
        """Return what a diff's label shows of it."""
        told = self.figures
        shown = {k: told[k] for k in SHOWN if isinstance(told.get(k), dict) and told[k]["n"]}
        about = {"concept": told["concept"], "level": told["level"],
                 "judge": told["judge"]["name"], "base": self.base,
                 "diffs": [{"sha256": self.sha, "strength": self.strength}]}  # fmt: skip
        return {**shown, **about, "verdict": told["verdict"]}

    def to_dict(self) -> dict[str, Any]:
        """Spell out what the API tells."""
        return {"figures": self.figures, "page": self.page.name, "verdict": self.verdict}


def audit(question: Question) -> Callable[[Job], Audited]:
    """Return the job that audits a diff and writes the page."""

    def work(job: Job) -> Audited:
        host = current()
        folders.ready(folders.audits())
        asked_about(question.diff, question.concept)  # the file may be another by now
        with host.borrowed() as said:
            job.said += said
            done = applying.prepare(host, [Wanted(question.diff, question.strength)])
            job.said += done.warnings
            host.bring()
            run = _audit(host, job, question, [(p.diff, p.strength) for p in done.parts])
            _follow(host, job, run)
            (part,), base = done.parts, host.fingerprint()
        name = f"{question.diff.rpartition('/')[2].removesuffix(folders.SUFFIX)}-audit"
        page = folders.fresh(folders.audits(), name, ".html")
        write_atomically(page, render_page(run.report).encode())
        return Audited(run.report.figures, page, part.sha, part.strength, base)

    return work


def _audit(host: Host, job: Job, question: Question, diffs: Iterable[tuple[Any, float]]) -> Audit:
    lent = host.lend(question.resolution, job.check)
    model = LoadedModel(
        lent.denoiser, lent.encoder, HostDecoder(host), lent.latent_size,  # type: ignore[arg-type]
        tuple(lent.vocabulary), tuple(lent.styles), host.family.unet.name,
    )  # fmt: skip

    def say(text: str) -> None:
        job.said.append(f"{text[0].upper()}{text[1:]}.")

    return question.request.audit(model, list(diffs), state=runs.store(), say=say)


def _follow(host: Host, job: Job, run: Audit) -> None:
    steps, total = iter(run), run.total
    job.tick(0, total, "drawing")
    while True:
        with host.stepping():  # attacks take gradients through the UNet
            step = next(steps, None)
        if step is None:
            break
        job.tick(step.done, step.total, step.stage)
