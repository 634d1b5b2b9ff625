"""TRUST Audit: is the concept gone, what stayed, and can it be brought back?"""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import comfy.model_management as mm
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ..trust_engine.audit import Audit, render_page
from ..trust_engine.audit.judges.catalogue import check_judge, explained
from ..trust_engine.audit.levels import Level
from ..trust_engine.audit.report.verdict import BACK, is_gone
from ..trust_engine.audit.request import AuditRequest
from ..trust_engine.diff import payload_sha256
from ..trust_engine.errors import SpecError
from ..trust_engine.frontend.pictures import FAINT, INK, MARGIN, PAPER, font
from ..trust_engine.frontend.wording import sized, spelled
from ..trust_engine.io.files import write_atomically
from ..trust_engine.models.load import LoadedModel
from ..trust_engine.models.sampler import SamplerSettings, sampled
from ..trust_engine.phrases import by_line
from ..trust_engine.spec import ConceptSpec, Sampling
from ..trust_engine.unlearn.estimate import pass_seconds
from .changes import between_models, diffs_between
from .charts import to_image
from .declaring import Output, node
from .file_names import check_prefix
from .folders import report_file
from .inputs import choice, lines, number, seed, setting, socket, text, verdict
from .lending import Lent, lend
from .private_unet import private_denoiser
from .progress import Bar, sparing, tell
from .runs import store
from .sockets import CONCEPT, REPORT

log = logging.getLogger(__name__)
TILE = 160
SMALL = 2  # rows of a batch on the second try


class HostDecoder(nn.Module):
    """The host's VAE as the engine's decoder: latents (b, 4, h, w) -> (b, 3, h, w) in -1..1."""

    def __init__(self, vae: Any, model: Any) -> None:
        super().__init__()
        self.__dict__["vae"], self.__dict__["format"] = vae, model.model.latent_format

    def forward(self, latents: Tensor) -> Tensor:
        """Decode a batch."""
        mm.throw_exception_if_processing_interrupted()
        with torch.inference_mode():
            image = self.vae.decode(self.format.process_out(latents))
        return image[..., :3].movedim(-1, 1).clone() * 2 - 1


@node("audit", ends=True, hidden=("unique_id",))
class TrustAudit:
    """Compare two MODELs on the same seeds, let a judge count, then attack."""

    DESCRIPTION = (
        "Draws the concept, other words for it and what should stay by both models on the same "
        "seeds, lets a judge count, and attacks. Also writes a page with pictures to the output "
        "folder."
    )

    REQUIRED: ClassVar = {
        "before": socket("MODEL", "The untouched model."),
        "after": socket("MODEL", "The model under a diff."),
        "clip": socket("CLIP", "The text encoder of both."),
        "vae": socket("VAE", "The VAE of both."),
        "concept": socket(CONCEPT, "What was unlearned; of a chain the last one."),
        "level": choice(("quick", "full"), "quick", "quick: the main questions, and an "
                        "attacker who learns a token. full: every attack; takes hours "
                        "on a full-size model."),
        "judge": text("demo", f"Who says what a picture shows. {explained()}."),
        "images": number(4, 1, 140, 1, "Pictures an object."),
        "seed": seed("Another seed asks the same questions with other pictures."),
        "filename_prefix": text("trust_audit", "Name of the page in the output folder."),
    }  # fmt: skip
    OPTIONAL: ClassVar = {
        "retain": text("", "For judges other than demo: what should stay, one a line.",
                       multiline=True, hint="what should stay (optional)"),
        "sampling": setting("sampling"),
    }  # fmt: skip
    GIVES: ClassVar = (
        Output(
            "report", REPORT, "All figures; connect to Save Diff to put them on the diff's label."
        ),
        Output("pictures", "IMAGE", "Some of the pictures that were judged."),
        Output("verdict", "STRING", "The verdict in words, and what it does not cover."),
    )

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        judge: str | None = None,
        retain: str | None = None,
        filename_prefix: str | None = None,
    ) -> bool | str:
        """Refuse a judge who is not there, and a page that cannot be written, before training."""

        def check() -> None:
            if judge is not None:
                check_judge(judge)
                check_retain(judge, retain or "")
            if filename_prefix is not None:
                check_prefix(filename_prefix)

        return verdict(check)

    def audit(
        self,
        before: Any,
        after: Any,
        clip: Any,
        vae: Any,
        concept: tuple[ConceptSpec, ...],
        level: str,
        judge: str,
        images: int,
        seed: int,
        filename_prefix: str,
        retain: str = "",
        sampling: Sampling = "guided",
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        """Run the audit, write its page, and show the verdict."""
        request = request_of(concept[-1], judge, retain, level, images, seed)
        page = report_file(filename_prefix, ".html")  # refuse a bad name before any work
        diff = between_models(before, after)

        noted: list[str] = []

        def say(text: str) -> None:
            log.info("%s", text)
            tell(unique_id, kind="notice", text=text)
            noted.append(f"{text[0].upper()}{text[1:]}.")

        def work(small: bool) -> Any:
            lent = lend(before, clip)
            net, decoder = private_denoiser(before, SMALL if small else 0), HostDecoder(vae, before)
            model = LoadedModel(
                net, lent.encoder, decoder, lent.model.latent_size,  # type: ignore[arg-type]
                tuple(lent.model.vocabulary), tuple(lent.model.styles),
            )  # fmt: skip
            asked = replace(request, level=slim(request.effort)) if small else request
            how = sampled(SamplerSettings(), sampling)
            run = asked.audit(model, [(diff, 1.0)], how, store(), say)
            _follow(run, lent, Bar(unique_id, run.total))
            return run.report

        smaller = f"{SMALL} rows at a time, also for attackers who train"
        report, said = sparing(unique_id, work, smaller, _advice(level))
        # Drawn was under what the two models differ in; a diff is known by its own hash.
        applied = [{"sha256": payload_sha256(diff), "strength": strength}
                   for diff, strength in diffs_between(before, after)]  # fmt: skip
        report.figures.update({"diffs": applied} if applied else {})
        write_atomically(page, render_page(report).encode())
        figures = report.figures
        tell(unique_id, kind="finished", concept=request.topic.name)
        verdict = "\n".join([figures["verdict"], *said, *dict.fromkeys(noted)])
        ui = {"text": [verdict], "trust_audit": [json.dumps(badge(figures, page.name))]}
        sheet = to_image(_sheet(report.pictures))
        return {"ui": ui, "result": (figures, sheet, verdict)}


def _follow(run: Audit, lent: Lent, bar: Bar) -> None:
    """Say what an audit will take, then iterate it under the bar."""
    every = sum(torch.Size(shape).numel() for shape in lent.host.weights.shapes.values())
    needs = f"{run.total} UNet passes, {sized(4 * every)} for a private UNet"
    about = {"kind": "audit", "stage": "", "done": 0, "total": run.total, "needs": needs}
    bar.tell(**about, left=None)
    expected = run.total * pass_seconds(run.context.models["untouched"])
    bar.tell(**about, left=round(expected))
    log.info("the audit is expected to take about %s and the judge's time; %s",
             spelled(expected), needs)  # fmt: skip
    for step in run:
        bar.update(step.done, step.total)
        if bar.due:
            left = bar.remaining(step.done, step.total, expected)
            bar.tell(kind="audit", stage=step.stage, done=step.done, total=step.total,
                     left=round(left))  # fmt: skip


def slim(level: Level) -> Level:
    """Let attackers who train see fewer pictures at once: their gradients take the most memory."""
    budgets = replace(level.budgets, inversion_batch=SMALL, relearn_batch=SMALL)
    return replace(level, budgets=budgets)


def _advice(level: str) -> str:
    closed = "close other programs that use the GPU"
    return closed if level == "quick" else f"set `level` to quick, or {closed}"


def check_retain(judge: str, retain: str) -> None:
    """Raise SpecError where the demo's judge, who knows what should stay, is told it."""
    if judge == "demo" and lines(retain):
        raise SpecError("goes with other judges than demo", field="retain", remedy="empty it")


def request_of(
    concept: ConceptSpec, judge: str, retain: str, level: str, images: int, seed: int
) -> AuditRequest:
    """Say what is audited; raises SpecError or ModelError for what cannot be."""
    check_judge(judge)
    check_retain(judge, retain)
    kept = by_line(retain)
    return AuditRequest(concept, judge, level, images, seed, retain=kept)


def worst_attack(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the attack that brings the concept back most often."""
    attacks = list(figures["attacks"].values())
    if not attacks:
        return None
    worst = max(attacks, key=lambda attack: attack["asr"]["value"])
    return {"title": worst["title"], "asr": worst["asr"]["value"]}


def badge(figures: Mapping[str, Any], page: str) -> dict[str, Any]:
    """Sum an audit up for the browser; standing: "good", "mixed" or "bad".

    Good is gone by name, what stays no worse than before, and no attack that brings it back.
    """
    ua, ira, was = figures["ua"], figures["ira"], figures["untouched"]
    worst = worst_attack(figures)
    gone = is_gone(ua)
    kept = ira["n"] == 0 or ira["high"] >= was["ira"]["low"]
    safe = worst is not None and worst["asr"] <= BACK
    less = ua["n"] > 0 and ua["low"] > was["ua"]["high"]
    standing = "good" if gone and kept and safe else "mixed" if less else "bad"
    told = {"ua": ua, "ira": ira, "attacks": worst, "standing": standing, "page": page}
    return {"verdict": figures["verdict"], **told}


def _sheet(pictures: Mapping[str, Mapping[str, Any]]) -> Any:
    """Lay the core cell's pictures out, a row for each title."""
    rows = [(title, row) for title, row in pictures.get("core", {}).items() if row]
    columns = max((len(row) for _, row in rows), default=1)
    width = 2 * MARGIN + columns * (TILE + 6)
    sheet = Image.new("RGB", (width, MARGIN + max(1, len(rows)) * (TILE + 34)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for j, (title, row) in enumerate(rows):
        y = MARGIN + j * (TILE + 34)
        pen.text((MARGIN, y - 4), str(title), INK, font(14), anchor="ls")
        for i, picture in enumerate(row):
            tile = Image.open(io.BytesIO(base64.b64decode(picture.jpeg))).resize((TILE, TILE))
            sheet.paste(tile, (MARGIN + i * (TILE + 6), y))
            if picture.hit is not None:
                seen = "seen" if picture.hit else "not seen"
                pen.text((MARGIN + i * (TILE + 6) + 2, y + TILE + 13), seen, FAINT, font(11),
                         anchor="ls")  # fmt: skip
    return sheet
