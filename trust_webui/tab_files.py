"""The lower half of the tab: a diff's label, notes, exports, checkpoint; and the audit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from secrets import token_hex
from typing import Any

import gradio as gr

from trust_engine.audit.judges.catalogue import explained
from trust_engine.diff import load_diff
from trust_engine.diff.bake import write_checkpoint
from trust_engine.diff.base_model import open_base
from trust_engine.diff.file import annotate_diff
from trust_engine.diff.label import describe, label
from trust_engine.diff.lora import export_dense, export_lora
from trust_engine.errors import SpecError, TrustError
from trust_engine.io.files import write_atomically
from trust_engine.spec import ConceptSpec

from . import applying, folders, job_status, runs, tab_always_on
from .asked_diffs import Wanted
from .audit_job import LEVELS, Audited, Question, asked_about, audit, concepts_of
from .form import concept_of, listed
from .host import current
from .jobs import JOBS
from .one_line import one_line
from .wording import LABELS

FORMATS = ("dense", "low rank")


def build(owner: Any) -> Any:
    """Build it; returns the list of diffs, which a finished run sets. owner: the page's token."""
    gr.Markdown("### Diffs")
    with gr.Row():
        with gr.Column():
            chosen = gr.Dropdown(folders.listed(), label="Diff", elem_id="trust_diff")
            refresh = gr.Button("Refresh the list", elem_id="trust_refresh")
        added = gr.File(label="Add a diff that someone gave you", elem_id="trust_add")
    shown = gr.Textbox(label="Its label", lines=9, interactive=False, elem_id="trust_label")
    told = gr.HTML(elem_id="trust_told")
    refresh.click(lambda: gr.update(choices=folders.listed()), [], [chosen])
    chosen.change(_label, [chosen], [shown])
    added.change(_add, [added], [told, chosen])
    with gr.Row():
        with gr.Accordion("Notes on the label", open=False):
            _notes(chosen, shown, told)
        with gr.Accordion("Export for those without this extension", open=False):
            _exports(chosen, told)
    with gr.Accordion("On every picture", open=False, elem_id="trust_on_every_picture"):
        tab_always_on.build(chosen)
    with gr.Accordion("Kept runs", open=False, elem_id="trust_kept_runs"):
        runs.build()
    with gr.Accordion("Audit: is it gone, and what else has changed?", open=False):
        _audit(chosen, shown, owner)
    return chosen


def _notes(chosen: Any, shown: Any, told: Any) -> None:
    author = gr.Textbox(label="Author", elem_id="trust_author")
    licence = gr.Textbox(label="Licence", elem_id="trust_licence")
    notes = gr.Textbox(label="Notes", lines=2, elem_id="trust_notes")
    button = gr.Button("Write onto the label", elem_id="trust_note")
    button.click(_annotate, [chosen, author, licence, notes], [told, shown])


def _exports(chosen: Any, told: Any) -> None:
    kind = gr.Radio(list(FORMATS), value=FORMATS[0], label="LoRA file", elem_id="trust_format",
                    info="dense: exact to float16, large. low rank: smaller, loses up to the "
                         "error below.")  # fmt: skip
    error = gr.Slider(0.0, 1.0, value=0.1, step=0.01, label="Error (low rank)", visible=False)
    kind.change(lambda chosen: gr.update(visible=chosen == FORMATS[1]), [kind], [error])
    lora = gr.Button("Export into the Lora folder", elem_id="trust_export")
    strength = gr.Slider(-2.0, 2.0, value=1.0, step=0.05, label="Strength in the checkpoint")
    whole = gr.Button("Save the whole checkpoint under the diff", elem_id="trust_checkpoint")
    lora.click(_export, [chosen, kind, error], [told])
    whole.click(_checkpoint, [chosen, strength], [told])


def _audit(chosen: Any, shown: Any, owner: Any) -> None:
    gr.Markdown(
        "A judge looks at pictures drawn with and without the diff chosen above, on the same "
        "seeds. What it looks for is what the diff's label says it forgets."
    )
    with gr.Row():
        concept = gr.Dropdown([], label="Forgotten concept", elem_id="trust_audit_concept",
                              allow_custom_value=True,
                              info="of the diff chosen above; to be typed only where its label "
                                   "does not say")  # fmt: skip
        judge = gr.Textbox(label=LABELS["judge"], elem_id="trust_judge",
                           info=explained(),
                           placeholder="clip:/models/clip-vit-large-patch14")  # fmt: skip
        level = gr.Radio(list(LEVELS), value=LEVELS[0], label=LABELS["level"],
                         info="quick and full also attack; full takes hours")  # fmt: skip
    with gr.Row():
        retain = gr.Textbox(label=LABELS["retain"], elem_id="trust_retain",
                            info="with commas; empty: everyday things",
                            placeholder="cat, dog")  # fmt: skip
        images = gr.Slider(1, 20, value=4, step=1, label=LABELS["images"],
                           elem_id="trust_images",
                           info="more of them: surer, and slower")  # fmt: skip
        resolution = gr.Slider(0, 1024, value=0, step=64, label=LABELS["resolution"],
                               elem_id="trust_audit_resolution",
                               info="0: the size the checkpoint was trained at")  # fmt: skip
    with gr.Row():
        start = gr.Button("Audit", variant="primary", elem_id="trust_audit")
        stop = gr.Button("Stop", elem_id="trust_audit_stop")
        note = gr.Button("Write the figures onto the diff's label", elem_id="trust_audit_note")
    verdict = gr.HTML(elem_id="trust_verdict")
    inputs = [owner, chosen, concept, retain, judge, level, images, resolution]
    start.click(_audited, inputs, [owner, verdict], **job_status.calm())
    stop.click(lambda mine: job_status.stopped(mine, "audit"), [owner], [verdict])
    note.click(_note_audit, [chosen], [verdict, shown])
    chosen.change(_other, [chosen], [concept, verdict])


def _other(name: str | None) -> tuple[Any, str]:
    """Offer what another diff forgets; the verdict of the one before says nothing of it."""
    names = list(_forgotten(name))
    return gr.update(choices=names, value=names[0] if len(names) == 1 else None), ""


def _forgotten(name: str | None) -> dict[str, ConceptSpec]:
    """Return what a diff's label says it forgets, by name; nothing of a diff that is not there."""
    try:
        return {one.name: one for one in concepts_of(applying.load(name or "")[0])}
    except TrustError:
        return {}


def _telling(work: Callable[[], str]) -> str:
    """Do something for the user, and say in a line what came of it."""
    try:
        return f'<p id="trust_done">{escape(work())}</p>'
    except TrustError as error:
        return job_status.problem(error)


def _chosen(name: str | None) -> Path:
    if not name:
        raise SpecError("choose a diff first")
    return folders.found(name)


def _label(name: str | None) -> str:
    if not name:
        return ""
    try:
        diff, _ = applying.load(name)
        text = label(name, describe(diff, folders.found(name).stat().st_size))
        if not current().ready:
            return text
        done = applying.prepare(current(), [Wanted(name)])
    except TrustError as error:
        return one_line(error)
    return "\n".join([text, *(f"  note: {line}" for line in done.warnings)])


def _add(file: Any) -> tuple[str, Any]:
    """Copy an uploaded diff into the folder, if it is one."""
    if file is None:
        return "", gr.update()
    source = Path(getattr(file, "name", file))
    added: list[str] = []

    def work() -> str:
        load_diff(source)
        path = folders.fresh(folders.diffs(), source.name)
        shutil.copyfile(source, path)
        added.append(path.name)
        return f"{path.name} is in the folder."

    told = _telling(work)
    return told, gr.update(choices=folders.listed(), value=added[0]) if added else gr.update()


def _annotate(name: str | None, author: str, licence: str, notes: str) -> tuple[str, str]:
    def work() -> str:
        path = _chosen(name)
        written = {"author": author, "licence": licence, "notes": notes}
        annotate_diff(path, {k: v.strip() for k, v in written.items() if v.strip()}, path)
        return f"{name}: noted. Its hash is still the same."

    return _telling(work), _label(name)


def _export(name: str | None, kind: str, error: float) -> str:
    def work() -> str:
        path = _chosen(name)
        diff = load_diff(path)
        out = folders.fresh(folders.loras(), path.stem)
        lost = export_dense(diff, out) if kind == FORMATS[0] else export_lora(diff, out, error)
        return f"{out}: {lost}. Use it as <lora:{out.stem}:1>."

    return _telling(work)


def _checkpoint(name: str | None, strength: float) -> str:
    def work() -> str:
        path = _chosen(name)
        if not current().ready:
            raise SpecError("no checkpoint is loaded yet; draw one picture, then try again")
        diff, source = load_diff(path), current().checkpoint
        out = folders.fresh(folders.checkpoints(), f"{source.stem}-{path.stem}")
        with open_base(source) as base:
            warnings = [*base.check([(diff, strength)], [path.name]), *base.remarks()]
            lost = write_checkpoint(base, [(diff, strength)], out)
        described = source.with_suffix(".yaml")
        if described.is_file():  # without it the host takes the copy for another kind of model
            write_atomically(out.with_suffix(".yaml"), described.read_bytes())
        return " ".join([f"{out}: {lost}.", *warnings])

    return _telling(work)


def _audited(
    owner: str, name: str | None, concept: str | None, retain: str, judge: str, level: str,
    images: float, resolution: float,
) -> Iterator[tuple[str, str]]:  # fmt: skip
    owner = owner or token_hex(8)
    try:
        _chosen(name)
        if not judge.strip():
            raise SpecError(f"name a judge ({explained()})")
        about = asked_about(str(name), _told(name, concept))
        question = Question(str(name), about, judge.strip(), level, int(images), listed(retain),
                            resolution=int(resolution))  # fmt: skip
    except TrustError as error:
        yield owner, job_status.problem(error)
        return
    job = JOBS.start("audit", f"{name}: {about.name}", audit(question), owner)
    for told, *_ in job_status.followed(job):
        verdict = ""
        if isinstance(job.result, Audited):
            page = escape(str(job.result.page))
            verdict = f"<p>{escape(job.result.verdict)}</p><p>Page: {page}</p>"
        yield owner, told + verdict


def _told(name: str | None, concept: str | None) -> ConceptSpec | None:
    """Return the concept that stands in the field; None for an empty one."""
    text = (concept or "").strip()
    return (_forgotten(name).get(text) or concept_of(text, "single", "")) if text else None


def _note_audit(name: str | None) -> tuple[str, str]:
    def work() -> str:
        path = _chosen(name)
        _, sha = applying.load(str(name))
        found = [job.result for job in JOBS.all()
                 if isinstance(job.result, Audited) and job.result.sha == sha]  # fmt: skip
        if not found:
            raise SpecError(f"there is no finished audit of {name} as it is now; press Audit first")
        annotate_diff(path, {"audit": found[-1].label}, path)
        return f"{name}: the audit's figures are on its label."

    return _telling(work), _label(name)
