"""The tab TRUST: what to forget, one button, and what came of it. For gradio 3.41 and 4.40."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from secrets import token_hex
from typing import Any

import gradio as gr

from trust_engine.errors import TrustError
from trust_engine.spec import KINDS, SETTINGS
from trust_engine.unlearn.effort import EFFORTS

from . import folders, form, job_status, tab_demo, tab_expected, tab_files, tab_jobs
from .estimate import watched
from .form import NAMES, Form
from .jobs import JOBS, PROMPTS, Job, Work
from .prompts_job import list_prompts
from .settings import option
from .unlearn_job import Order
from .wording import LABELS

INTRO = (
    "Make the loaded checkpoint forget a concept. Type what it shall forget and press **Unlearn**. "
    "The checkpoint is not changed: you get a small diff, which the accordion **TRUST** in txt2img "
    "and img2img puts on, at any strength."
)
LISTED = "<p>The list appears under <b>Report</b>, at the top of the page.</p>"
PARTNERS = {
    "combination": ("With: the other half, which stays", "beer"),
    "conditional": ("When: elsewhere it stays", "on a red background"),
}
OF_THE_FORM = ("unlearn", PROMPTS)  # jobs that its buttons begin, and Stop stops


def build() -> list[tuple[Any, str, str]]:
    """Build the tab, as the host's on_ui_tabs wants it."""
    with gr.Blocks(analytics_enabled=False) as page:
        owner = gr.State(value="")  # this page's token, by which it knows its own jobs
        gr.Markdown(INTRO)
        tab_demo.build()
        with gr.Row():
            with gr.Column(scale=2):
                fields = _fields()
                loaded = _presets(fields)
                follow = tab_expected.build(fields)
                with gr.Row():
                    start = gr.Button("Unlearn", variant="primary", elem_id="trust_unlearn")
                    stop = gr.Button("Stop", elem_id="trust_stop")
                refusal = gr.HTML(elem_id="trust_refusal")
                with gr.Row():
                    estimate = gr.Button("How long will it take?", elem_id="trust_expect")
                    prompts = gr.Button("Which prompts?", elem_id="trust_prompts")
                    again = gr.Button("Show the latest job", elem_id="trust_again")
            with gr.Column(scale=3):
                state = gr.HTML(job_status.status(None), elem_id="trust_status")
                report = gr.Textbox(label="Report", lines=5, interactive=False,
                                    elem_id="trust_report",
                                    **job_status.from_the_top())  # fmt: skip
                gallery = gr.Gallery(label="Before and after", elem_id="trust_gallery", columns=4)
                with gr.Row():
                    curves = gr.Image(label="Effect and harm", type="pil", interactive=False,
                                      elem_id="trust_chart")  # fmt: skip
                    neurons = gr.Image(label="Concept neurons", type="pil", interactive=False,
                                       elem_id="trust_neurons")  # fmt: skip
                jobs = gr.Column()
        chosen = tab_files.build(owner)
        inputs = [fields[name] for name in NAMES]
        outputs = [state, gallery, curves, neurons, report, chosen]
        with jobs:
            tab_jobs.build(owner, _shown, outputs)
        started = start.click(
            _unlearn, [owner, *inputs], [owner, refusal, *outputs], **job_status.calm()
        )
        prompts.click(_prompts, [owner, *inputs], [owner, refusal, *outputs], **job_status.calm())
        follow(started.then)  # by what the run has taken
        follow(estimate.click)
        follow(loaded.then)
        again.click(_again, [], outputs, **job_status.calm())
        stop.click(_stop, [owner], [state])
    return [(page, "TRUST", "trust")]


def _fields() -> dict[str, Any]:
    """Lay out the form; every default is the engine's or the settings'."""
    made = dict[str, Any]()
    made["words"] = gr.Textbox(
        label=LABELS["words"], placeholder="gun   (more words for it: with commas)",
        elem_id="trust_words",
    )  # fmt: skip
    made["kind"] = gr.Radio(
        list(KINDS), value=KINDS[0], label=LABELS["kind"], elem_id="trust_kind",
        info="A thing; a combination whose members stay; a thing under a condition; a style.",
    )  # fmt: skip
    made["partner"] = gr.Textbox(
        label=LABELS["partner"], elem_id="trust_partner", visible=False,
    )  # fmt: skip
    for event in (made["kind"].change, made["partner"].blur):
        event(_partner, [made["kind"], made["partner"]], [made["partner"]])
    made["preserve"] = gr.Textbox(
        label=LABELS["preserve"], elem_id="trust_preserve",
        placeholder="empty: words near the concept are proposed",
    )  # fmt: skip
    made["anchor"] = gr.Textbox(
        label=LABELS["anchor"], elem_id="trust_anchor",
        placeholder="empty: the prompt without the concept",
    )  # fmt: skip
    with gr.Row():
        made["objective"] = _choice("objective", "Objective")
        made["effort"] = gr.Radio(
            list(EFFORTS), value=option("trust_effort", "normal"), label=LABELS["effort"],
            info="More steps: less of the concept is left.", elem_id="trust_effort",
        )  # fmt: skip
    about = SETTINGS["robust"]
    made["robust"] = gr.Checkbox(
        value=about.default, label=about.label, info=about.help, elem_id="trust_robust"
    )
    made["budget"] = _slider("budget")
    with gr.Accordion("More settings", open=False):
        made.update(_more())
    return made


def _more() -> dict[str, Any]:
    made = dict[str, Any]()
    made["also"] = gr.Textbox(label=LABELS["also"], placeholder="knife, sword")
    made["templates"] = gr.Textbox(
        label=LABELS["templates"], lines=2, elem_id="trust_templates",
        info="With {} where the concept goes, a line each.", placeholder="empty: the engine's own",
    )  # fmt: skip
    made["stays"] = gr.Textbox(
        label=LABELS["stays"], lines=3, elem_id="trust_stays", info="A prompt a line.",
        placeholder="empty: what is preserved, alone and in pairs; Which prompts? lists it",
    )  # fmt: skip
    made["engine"] = _choice("engine", "Engine")
    made["resolution"] = gr.Slider(
        0, 1024, value=0, step=64, label=LABELS["resolution"], elem_id="trust_resolution",
        info="Side in pixels while recording; 0: the size the checkpoint was trained at.",
    )  # fmt: skip
    made["pictures"] = gr.Slider(
        0, 16, value=int(option("trust_pictures", Form().pictures)), step=2,
        label=LABELS["pictures"], elem_id="trust_pictures",
    )  # fmt: skip
    made["passes"] = _slider("passes", step=32, elem_id="trust_passes")
    about = SETTINGS["seed"]
    made["seed"] = gr.Number(value=about.default, precision=0, label=about.label, info=about.help)
    for name in ("rate", "beta", "eta", "lam"):
        made[name] = _slider(name)
    for name in ("syntax", "sampling"):
        made[name] = _choice(name, SETTINGS[name].label)
    return made


def _choice(name: str, label: str) -> Any:
    """Make the buttons of a setting of the engine's."""
    about = SETTINGS[name]
    return gr.Radio(list(about.options), value=about.default, label=label, info=about.help)


def _slider(name: str, **more: Any) -> Any:
    """Make the slider of a setting of the engine's, over its usual values."""
    about = SETTINGS[name]
    low, high = about.usual or (about.low, about.high)
    shown = {"step": about.step, "label": about.label, "info": about.help, **more}
    return gr.Slider(low, high, value=about.default, **shown)


def _presets(made: dict[str, Any]) -> Any:
    """Lay presets out; returns the event that follows the loading of one."""
    with gr.Accordion("Presets", open=False):
        with gr.Row():
            name = gr.Dropdown(form.presets(), label="Preset", elem_id="trust_preset")
            load = gr.Button("Load", elem_id="trust_preset_load")
        with gr.Row():
            new = gr.Textbox(label="Name", elem_id="trust_preset_name")
            save = gr.Button("Save", elem_id="trust_preset_save")
        told = gr.HTML(elem_id="trust_preset_told")
    fields = [made[key] for key in NAMES]
    save.click(_save_preset, [new, *fields], [told, name])
    loaded = load.click(_load_preset, [name], [told, *fields])
    return loaded.then(_partner, [made["kind"], made["partner"]], [made["partner"]])


def _partner(kind: str, filled: str) -> Any:
    """Show the field that only some kinds have; one that is filled never goes out of sight."""
    label, placeholder = PARTNERS.get(
        kind, ("With, or when (of no use to this kind: empty it)", "")
    )
    shown = kind in PARTNERS or bool((filled or "").strip())
    return gr.update(visible=shown, label=label, placeholder=placeholder)


def _form(values: tuple[Any, ...]) -> Form:
    return form.filled(dict(zip(NAMES, values, strict=True)))


def _unlearn(owner: str, *values: Any) -> Iterator[tuple[Any, ...]]:
    yield from _begun("unlearn", watched, owner, values)


def _prompts(owner: str, *values: Any) -> Iterator[tuple[Any, ...]]:
    yield from _begun(PROMPTS, list_prompts, owner, values, LISTED)


def _begun(
    kind: str,
    job_of: Callable[[Order], Work],
    owner: str,
    values: tuple[Any, ...],
    beside: str = "",
) -> Iterator[tuple[Any, ...]]:
    """Begin a job on what the form says, and show it; a refusal begins none.

    beside: what is said beside the buttons, from where the report may be out of sight.
    """
    owner = owner or token_hex(8)
    try:
        order = _form(values).order
    except TrustError as error:
        said = job_status.problem(error)
        # The status is written anew all the time while the page follows a job of its own.
        again = said if JOBS.runs(owner, *OF_THE_FORM) else ""
        yield (owner, again, said, *job_status.NOTHING, gr.update())
        return
    for shown in _shown(JOBS.start(kind, order.spec.name, job_of(order), owner)):
        yield (owner, beside, *shown)
        beside = gr.update()


def _stop(owner: str) -> str:
    return job_status.stopped(owner, *OF_THE_FORM)


def _again() -> Iterator[tuple[Any, ...]]:
    yield from _shown(JOBS.latest())


def _shown(job: Job | None) -> Iterator[tuple[Any, ...]]:
    for *shown, diff in job_status.followed(job):
        update = gr.update() if diff is None else gr.update(choices=folders.listed(), value=diff)
        yield (*shown, update)


def _load_preset(name: str) -> tuple[Any, ...]:
    try:
        loaded = form.load_preset(name or "")
    except TrustError as error:
        return (job_status.problem(error), *(gr.update() for _ in NAMES))
    return (f"<p>{form.folders.harmless(name)} is loaded.</p>",
            *(getattr(loaded, key) for key in NAMES))  # fmt: skip


def _save_preset(name: str, *values: Any) -> tuple[Any, Any]:
    try:
        saved = form.save_preset(name or "", _form(values))
    except TrustError as error:
        return job_status.problem(error), gr.update()
    return f"<p>Saved as {saved}.</p>", gr.update(choices=form.presets(), value=saved)
