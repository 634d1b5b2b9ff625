"""TRUST Find Neurons: where in the picture and where in the model the concept sits."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image

from ..trust_engine.frontend.pictures import neuron_map
from ..trust_engine.spec import ConceptSpec, UnlearnSpec
from .charts import heated, side_by_side, stacked, to_image
from .declaring import Output, node
from .drawing import MOMENTS, HeatMap, decoded, draw, previewed
from .host_run import Ran, for_browser, found_by, run_engine
from .inputs import number, seed, socket
from .lending import Lent, lend
from .progress import Bar, sparing
from .run_cache import Prompt, remember
from .settings import DEFAULTS, Settings, compose
from .sockets import CONCEPT, NEURONS, SETTINGS

STEPS = 20  # of the picture
SIDE = 384  # pixels of a picture that is shown
NOTES = ("share of entries that stand out as concept neurons", "(100%): before any training")


@node("find", shown_again=True, hidden=("unique_id", "prompt"))
class TrustFindNeurons:
    """Look for concept neurons without changing anything."""

    DESCRIPTION = (
        "Shows where a picture's attention to the concept lies, and which entries of q, k and v "
        "carry it, layer by layer. Trains nothing. Unlearn can take over what it recorded."
    )

    REQUIRED: ClassVar = {
        "model": socket("MODEL", "SD 1.x, SD 2.x or SDXL. It is not changed."),
        "clip": socket("CLIP", "The model's text encoder."),
        "concept": socket(CONCEPT, "What to look for; of a chain all concepts."),
        "budget": number(DEFAULTS["budget"], 0.0001, 1.0, 0.001,
                         "The largest share of entries that may count as neurons."),
        "seed": seed("Decides the pictures that are recorded; Unlearn needs the same."),
    }  # fmt: skip
    OPTIONAL: ClassVar = {
        "vae": socket("VAE", "Shows the picture itself below the heat map."),
        "settings": socket(SETTINGS, "From Unlearn Settings; Unlearn needs the same."),
    }  # fmt: skip
    GIVES: ClassVar = (
        Output("neurons", NEURONS, "Connect to Unlearn, to save recording once more."),
        Output(
            "map", "IMAGE", "The concept's attention over a picture, and the map of its neurons."
        ),
    )

    def find(
        self,
        model: Any,
        clip: Any,
        concept: tuple[ConceptSpec, ...],
        budget: float,
        seed: int,
        vae: Any = None,
        settings: Settings | None = None,
        unique_id: str | None = None,
        prompt: Prompt | None = None,
    ) -> dict[str, Any]:
        """Record, take the first mask, and draw."""
        spec = compose(concept, settings, "normal", budget=budget, seed=seed)
        # One step of a bounded mask: a shrinking one begins with every entry, which shows nothing.
        first = replace(spec, steps=1, objective="none", engine="local", schedule="bounded",
                        stop_effect=0.0)  # fmt: skip
        resolution = settings.resolution if settings else 0

        def work(small: bool) -> tuple[Lent, Ran]:
            lent = lend(model, clip, resolution, spec.saliency != "attention")
            if small:
                lent.host.rows = 2
            return lent, run_engine(lent, first, unique_id, None)

        advice = "lower `resolution` in Unlearn Settings"
        (lent, ran), said = sparing(unique_id, work, "2 rows at a time", advice)
        seen = _attention(lent, first, model, vae, ran, unique_id)
        title = f"Concept neurons of {spec.name}"
        picture = stacked([seen, neuron_map(title, ran.run.neurons, NOTES)])
        shown = {**for_browser(ran), "curves": {}}
        remember(prompt, unique_id, shown)
        ui = {"text": said, "trust_run": [json.dumps(shown)]}
        return {"ui": ui, "result": (found_by(ran, lent), to_image(picture))}


def _attention(
    lent: Lent, spec: UnlearnSpec, model: Any, vae: Any, ran: Ran, node: str | None
) -> Any:
    """Draw the concept once, and lay its attention over the picture."""
    total, done = STEPS + len(MOMENTS), 0
    bar = Bar(node, total)

    def on_step() -> None:
        nonlocal done
        done += 1
        bar.update(done, total)

    prompt, word = ran.run.prompts.targets[0], spec.concepts[0].words[0]
    lent = replace(lent, encoder=ran.run.model.encoder)
    latents = draw(lent, [prompt], spec.seed, on_step, spec.sampling)[:1]
    places = lent.encoder.places_of(prompt, word)
    places = places or list(range(1, 1 + max(1, lent.encoder.count_tokens(prompt))))
    with torch.inference_mode():
        heat = HeatMap(lent, places).watch(prompt, latents, on_step)
    picture = decoded(vae, model, latents)[0] if vae is not None else previewed(model, latents)
    if picture is None:
        picture = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    picture = picture.resize((SIDE, SIDE))
    return side_by_side([picture, heated(picture, heat)])
