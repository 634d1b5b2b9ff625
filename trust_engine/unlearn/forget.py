"""The whole job in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..diff import WeightDiff
from ..models.contract import LentModel
from ..models.load import LoadedModel
from ..spec import ConceptSpec, UnlearnSpec
from .run import StepReport, Unlearning


def forget(
    model: LoadedModel | LentModel,
    *concepts: str | ConceptSpec,
    progress: Callable[[StepReport], object] | None = None,
    **settings: Any,
) -> WeightDiff:
    """Make a model forget concepts and return what changed; the model itself is only read.

    concepts: a thing by its name, several names of it with commas between, or a ConceptSpec;
    settings: fields of UnlearnSpec, such as `steps=300`; progress: called after each unit of work,
    and an exception of it cancels. Raises SpecError for what is not understood.
    """
    named = tuple(ConceptSpec((c,)) if isinstance(c, str) else c for c in concepts)
    lent = model.lend() if isinstance(model, LoadedModel) else model
    run = Unlearning(lent, UnlearnSpec(named, **settings))
    for report in run:
        if progress is not None:
            progress(report)
    return run.diff
