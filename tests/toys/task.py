"""A baseline's task on a tiny model."""

from __future__ import annotations

from torch import nn

from bench.baselines.common import Meter, Task, metered
from toys.tiny import WORDS, WordEncoder, tiny_denoiser
from trust_engine.models.load import LoadedModel
from trust_engine.spec import ConceptSpec

GUN = ConceptSpec(("gun",), preserve=("a cat", "a dog"))


def task_of(concept: ConceptSpec = GUN, seed: int = 0, meter: Meter | None = None) -> Task:
    """Ask for a concept to be unlearned on a tiny random model."""
    model = LoadedModel(
        tiny_denoiser(), WordEncoder(), nn.Identity(), (4, 4), WORDS, ("sketch",), "tiny"
    )  # type: ignore[arg-type]
    return Task(metered(model, meter) if meter else model, concept, seed)
