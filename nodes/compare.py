"""TRUST Compare: two MODELs, same prompts, same seeds, by the host's own sampler."""

from __future__ import annotations

from typing import Any, ClassVar

import comfy.sample
import comfy.samplers
import numpy as np
import torch
from torch import Tensor

from ..trust_engine.errors import SpecError
from ..trust_engine.frontend.pictures import contact_sheet
from ..trust_engine.phrases import by_line
from .charts import to_image
from .declaring import Output, node
from .host import schedule_of
from .inputs import choice, number, socket, text, verdict
from .lending import FACTOR, check_clip, latent_side
from .progress import Bar
from .weights import Weights

MOST = 64  # pictures a model
WIDTH = 7  # pixels of a letter, about


@node("compare")
class TrustCompare:
    """Draw before and after beside each other."""

    DESCRIPTION = "Draws the same prompts with the same seeds by two models, into one sheet."
    GIVES: ClassVar = (
        Output("sheet", "IMAGE", "Both rows with labels."),
        Output("before", "IMAGE", "The first model's pictures."),
        Output("after", "IMAGE", "The second's."),
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        samplers, schedulers = comfy.samplers.SAMPLER_NAMES, comfy.samplers.SCHEDULER_NAMES
        return {
            "required": {
                "before": socket("MODEL", "The untouched model."),
                "after": socket("MODEL", "The model under a diff."),
                "clip": socket("CLIP", "The text encoder of both."),
                "vae": socket("VAE", "The VAE of both."),
                "prompts": text("a gun\na cat", "One prompt a line: the concept, and what must "
                                "stay.", multiline=True),
                "seeds": text("1, 2", "One picture of each prompt for each seed."),
                "steps": number(20, 1, 1000, 1, "Sampling steps."),
                "cfg": number(7.0, 1.0, 30.0, 0.5, "Guidance."),
                "sampler_name": choice(samplers, samplers[0], "The host's sampler."),
                "scheduler": choice(schedulers, schedulers[0], "The host's scheduler."),
                "resolution": number(0, 0, 4096, 8, "Side in pixels. 0: the size that the model "
                                     "was trained at."),
            },
            "optional": {"negative": text("", "The negative prompt.")},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }  # fmt: skip

    @classmethod
    def VALIDATE_INPUTS(cls, prompts: str | None = None, seeds: str | None = None) -> bool | str:
        """Refuse pictures that cannot be drawn, or are too many."""
        asked = "a prompt that comes later" if prompts is None else prompts
        return verdict(lambda: pairs_of(asked, "0" if seeds is None else seeds))

    def compare(
        self,
        before: Any,
        after: Any,
        clip: Any,
        vae: Any,
        prompts: str,
        seeds: str,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        resolution: int,
        negative: str = "",
        unique_id: str | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sheet, and each model's pictures."""
        pairs = pairs_of(prompts, seeds)
        check_clip(clip, Weights(before))
        side = resolution // FACTOR or latent_side(Weights(before), schedule_of(before).prediction)
        bar, done = Bar(unique_id, 2 * len(pairs) * steps), 0

        def on_step(*_told: Any) -> None:
            nonlocal done
            done += 1
            bar.update(done, 2 * len(pairs) * steps)

        rows = []
        for model in (before, after):
            pictures = [
                _sampled(model, clip, vae, prompt, negative, number, side, on_step,
                         (steps, cfg, sampler_name, scheduler))
                for prompt, number in pairs
            ]  # fmt: skip
            rows.append(torch.cat(pictures))
        arrays = [(row.cpu().numpy() * 255).round().astype(np.uint8) for row in rows]
        room = max(6, 8 * side // WIDTH - 5)
        labels = [f"{prompt[:room]} / {number}" for prompt, number in pairs]
        titled = list(zip(("before", "after"), arrays, strict=True))
        sheet = contact_sheet("Same prompts, same seeds", titled, labels)
        return to_image(sheet), rows[0], rows[1]


def pairs_of(prompts: str, seeds: str) -> list[tuple[str, int]]:
    """List each prompt with each seed; raises SpecError for none, or for too many."""
    asked = by_line(prompts)
    numbers = read_seeds(seeds)
    if not asked:
        raise SpecError("there is no prompt: write one a line into `prompts`")
    if len(asked) * len(numbers) > MOST:
        raise SpecError(
            f"{len(asked)} prompts times {len(numbers)} seeds are more than {MOST} pictures; "
            "take fewer"
        )
    return [(prompt, number) for prompt in asked for number in numbers]


def read_seeds(text: str) -> list[int]:
    """Read whole numbers separated by commas or spaces; raises SpecError."""
    try:
        numbers = [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise SpecError(f"seeds {text!r} are not whole numbers; write such as: 1, 2, 3") from error
    if not numbers or min(numbers) < 0:
        raise SpecError("seeds are missing or negative; write such as: 1, 2, 3")
    return numbers


def _sampled(
    model: Any, clip: Any, vae: Any, prompt: str, negative: str, seed: int, side: int,
    on_step: Any, how: tuple[int, float, str, str],
) -> Tensor:  # fmt: skip
    """Draw one picture (1, h, w, 3) the way the stock sampler node does."""
    steps, cfg, sampler, scheduler = how
    latent = torch.zeros(1, 4, side, side)
    noise = comfy.sample.prepare_noise(latent, seed)
    samples = comfy.sample.sample(
        model, noise, steps, cfg, sampler, scheduler, _encoded(clip, prompt),
        _encoded(clip, negative), latent, callback=on_step, disable_pbar=True, seed=seed,
    )  # fmt: skip
    return vae.decode(samples)[..., :3]


def _encoded(clip: Any, prompt: str) -> list[Any]:
    """Encode a prompt as the stock node does."""
    cond, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)
    return [[cond, {"pooled_output": pooled}]]
