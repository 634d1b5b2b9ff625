"""TRUST Unlearn: from a MODEL and a concept to a patched MODEL and a diff."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any, ClassVar

from ..trust_engine.diff.weight_diff import WeightDiff
from ..trust_engine.frontend.before_after import before_after_sheet
from ..trust_engine.frontend.run_report import run_report
from ..trust_engine.frontend.subjects import COUNT, MOST, passes
from ..trust_engine.phrases import by_line
from ..trust_engine.spec import ConceptSpec, UnlearnSpec
from .before_after import look
from .charts import stacked, summary_picture, to_image, where
from .declaring import Output, node
from .host import family_named
from .host_run import Neurons, Ran, for_browser, run_engine
from .inputs import choice, number, seed, setting, socket, text, verdict
from .lending import Lent, lend
from .patching import patched
from .progress import sparing
from .run_cache import Prompt, remember
from .settings import EFFORTS, Settings, compose
from .sockets import CONCEPT, DIFF, NEURONS, SETTINGS

log = logging.getLogger(__name__)
SMALL = 2  # rows of a batch on the second try
UNKNOWN = ConceptSpec(("zxqwv",))  # in the place of what comes over a link


@node("unlearn", shown_again=True, hidden=("unique_id", "prompt"))
class TrustUnlearn:
    """Unlearn concepts; the MODEL that comes in is only ever read."""

    DESCRIPTION = (
        "Makes a model forget the concept, by changing only its concept neurons: a few entries "
        "of cross-attention q, k and v. Gives a patched MODEL and the small diff that patches it."
    )
    REQUIRED: ClassVar = {
        "model": socket("MODEL", "SD 1.x, SD 2.x or SDXL, LoRAs and all. It is not "
                        "changed."),
        "clip": socket("CLIP", "The model's text encoder, clip skip and all."),
        "concept": socket(CONCEPT, "What to forget: one Concept, or a chain of them."),
        "objective": setting("objective"),
        "engine": setting("engine"),
        "effort": choice(tuple(EFFORTS), "normal",
                         "How many training steps. More: less of the concept is left."),
        "budget": setting("budget"),
        "robust": setting("robust"),
        "seed": seed("Another seed gives another run; the same one the same diff, on the "
                     "same machine with the same versions and number of threads."),
    }  # fmt: skip
    OPTIONAL: ClassVar = {
        "vae": socket("VAE", "With it the chart also shows the concept before and after."),
        "neurons": socket(NEURONS, "From Find Neurons with the same concept, seed and "
                          "settings: saves recording once more. The diff is the same."),
        "settings": socket(SETTINGS, "From Unlearn Settings, for everything else."),
        "pictures": number(COUNT, 0, MOST, 1, "Test pictures at the end, drawn without and "
                           "with the diff: the report rests on them. Half of them show "
                           "what must stay. 0: none."),
        "stays": text("", "Robust mode: what its pictures of what must stay show, a prompt a "
                      "line. Empty: what is preserved, alone and in pairs; TRUST Prompts lists "
                      "it.", multiline=True, hint="robust mode's pictures of what stays "
                      "(optional)"),
    }  # fmt: skip
    GIVES: ClassVar = (
        Output("model", "MODEL",
               "The model under the diff, to sample with or to save by the stock node."),
        Output("diff", DIFF,
               "The diff: save it, apply it at another strength, merge it, export it."),
        Output("chart", "IMAGE", "How effect and harm went, and where the neurons sit; with a VAE "
               "also before and after."),
        Output("report", "STRING", "What was done, in words."),
    )  # fmt: skip

    @classmethod
    def VALIDATE_INPUTS(cls, stays: str | None = None, robust: bool | None = None) -> bool | str:
        """Refuse pictures of what must stay that no run could draw, or that this one would not."""
        if not stays or robust is None:
            return True
        return verdict(lambda: check_stays(stays, robust))

    def unlearn(
        self,
        model: Any,
        clip: Any,
        concept: tuple[ConceptSpec, ...],
        objective: str,
        engine: str,
        effort: str,
        budget: float,
        robust: bool,
        seed: int,
        vae: Any = None,
        neurons: Neurons | None = None,
        settings: Settings | None = None,
        pictures: int = COUNT,
        stays: str = "",
        unique_id: str | None = None,
        prompt: Prompt | None = None,
    ) -> dict[str, Any]:
        """Run the engine; out of memory, once more with less of it."""
        spec = compose(concept, settings, effort, objective=objective, engine=engine,
                       budget=budget, robust=robust, seed=seed, stays=by_line(stays))  # fmt: skip
        resolution = settings.resolution if settings else 0

        def work(small: bool) -> tuple[Lent, Ran]:
            mine = replace(spec, checkpointing=True) if small and _checkpoints(spec) else spec
            lent = lend(model, clip, resolution, mine.whole_unet,
                        rows=SMALL if small else 0, gradients=mine.through_unet)  # fmt: skip
            if small:
                lent.host.rows = SMALL
            start = neurons if mine is spec else None
            drawing = passes(pictures, spec.sampling)
            return lent, run_engine(lent, mine, unique_id, start, drawing, keep=True)

        (lent, ran), said = sparing(unique_id, work, f"{SMALL} rows at a time", _advice(spec))
        diff = labelled(ran.run.diff, lent)
        after = patched(model, diff)
        title, steps = f"Unlearned: {spec.name}", ran.run.steps
        picture = summary_picture(title, ran.curves, steps, where(ran.run))
        seen, missed = look(lent, (model, after), clip, vae, ran, pictures, unique_id)
        if seen is not None and seen.before is not None:
            title = "Test pictures: same prompts, same seeds"
            picture = stacked([picture, before_after_sheet(title, seen)])
        stored = [f"Note: {lent.host.storage}."] if lent.host.storage else []
        told = run_report(ran.run, diff, seen, ran.seconds, [*missed, *said, *ran.said, *stored])
        report = str(told)
        shown = for_browser(ran)
        remember(prompt, unique_id, shown)
        ui = {"text": [report], "trust_run": [json.dumps(shown)], "trust_headline": [told.headline]}
        return {"ui": ui, "result": (after, diff, to_image(picture), report)}


def check_stays(stays: str, robust: bool) -> None:
    """Raise SpecError for pictures of what must stay that no concept makes right."""
    UnlearnSpec((UNKNOWN,), robust=robust, stays=by_line(stays)).refuse_unheeded()


def labelled(diff: WeightDiff, lent: Lent) -> WeightDiff:
    """Note which model a diff was made from, and round it to what a file holds."""
    family = family_named(lent.host.weights)
    about = {"prediction": lent.host.schedule.prediction, **({"family": family} if family else {})}
    return WeightDiff(diff.offsets, {**diff.provenance, **about}, diff.notes).compact()


def _checkpoints(spec: UnlearnSpec) -> bool:
    return spec.together and not spec.exact_hessian


def _advice(spec: UnlearnSpec) -> str:
    if spec.robust:
        return "switch `robust` off, or lower `resolution` in Unlearn Settings"
    if spec.through_unet:
        return "set `engine` to local and `saliency` to attention, or lower `resolution`"
    return "lower `resolution` in Unlearn Settings, or close other programs that use the GPU"
