"""How the model that a diff was made from is sampled, by the diff's own spec."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from ..errors import SpecError
from ..spec import Sampling
from .weight_diff import WeightDiff

DEEPEST = 4  # merges of merges whose parts are read


def sampling_of(diffs: Iterable[WeightDiff]) -> Sampling:
    """Return how the model is sampled that some diffs were made from: guided, or as they say.

    Raises SpecError where they contradict one another.
    """
    said = {told for diff in diffs for told in _told(diff.provenance)}
    if len(said) > 1:
        raise SpecError(
            f"the diffs are of models that are sampled otherwise ({', '.join(sorted(said))}); "
            "they do not go together"
        )
    return next(iter(said), "guided")


def _told(provenance: Mapping[str, Any], depth: int = 0) -> Iterator[Sampling]:
    """Find what a label says of it; a spec of a stranger's may be anything."""
    parts = provenance.get("parts")
    for part in parts if isinstance(parts, list) and depth < DEEPEST else ():
        if isinstance(part, Mapping):
            yield from _told(part, depth + 1)
    try:
        spec = json.loads(provenance["spec"])
        told = spec.get("sampling", "guided")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return
    if told in get_args(Sampling):
        yield told
