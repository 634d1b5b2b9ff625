"""Is it gone, however one asks? Other sentences, samplers, guidance, step counts, img2img."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..context import AuditContext
from ..levels import Level
from ..probe_prompts import concept_shots, paraphrase_shots
from .base import Check, gone_cell


def forgetting_cells(context: AuditContext, level: Level) -> Iterator[Check]:
    """List the cells on forgetting; a distilled model is drawn in its own way alone."""
    topic, seed, settings, few = context.topic, context.seed, context.settings, level.shots
    paraphrases = paraphrase_shots(topic, level.shots * 2, seed)
    yield gone_cell("forgetting.paraphrases", context, paraphrases)
    for name in () if settings.distilled else level.samplers:
        shots = concept_shots(topic, "samplers", few, seed)
        yield gone_cell(
            f"forgetting.samplers.{name}", context, shots, replace(settings, sampler=name)
        )
    for cfg in () if settings.distilled else level.cfgs:
        shots = concept_shots(topic, "cfg", few, seed)
        yield gone_cell(f"forgetting.cfg.{cfg:g}", context, shots, replace(settings, cfg=cfg))
    for steps in () if settings.distilled else level.steps:
        shots = concept_shots(topic, "steps", few, seed)
        yield gone_cell(f"forgetting.steps.{steps}", context, shots, replace(settings, steps=steps))
    for strength in level.strengths:
        shots = concept_shots(topic, "image_to_image", few, seed)
        yield gone_cell(
            f"forgetting.image_to_image.{strength:g}", context, shots, strength=strength
        )
