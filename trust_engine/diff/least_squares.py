"""Merge diffs by least squares: each concept meets what its own diff does, the rest meets nothing.

Diffs that are added up add up their side effects, too: ten move what must stay as far as its own
values are large. Keys and values are linear in the text, so that one change D of each can stand for
all the parts' changes D_i. With C_i the text states of concept i's prompts, and R those of what
must stay,

    D = argmin  mean_i || (D - D_i) C_i ||^2  +  beta || D R ||^2  +  ridge || D ||^2.

The form is UCE's (Gandikota et al. 2023, arXiv 2308.14761, equation 7), and merging so is MACE's
idea (Lu et al. 2024, arXiv 2403.06135, section 3.4); the weights of the tokens and the rescaling of
D are ours. Queries depend on the picture, not on the text, and stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DiffError, SpecError
from ..models.contract import TextEncoder
from ..models.unet_keys import projection_of
from ..prompts.concept import build_prompts
from ..spec import ConceptSpec, UnlearnSpec
from .arithmetic import Parts, check_parts, lineage
from .weight_diff import SparseOffset, WeightDiff

BETA = 1.0  # weight of what must stay
RIDGE = 1e-4  # of the mean square of a text state's entry
PADDING = 0.1  # weight of a token after the end beside one of the prompt
# What must stay shrinks D; this undoes it for values. Keys pass a softmax, which does so by itself.
GAIN = {"k": 1.0, "v": 1.15}
ROWS = 32  # prompts encoded at once


def fitted(
    parts: Parts,
    encoder: TextEncoder,
    vocabulary: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> WeightDiff:
    """Compose diffs times strengths into one that does to each concept what its own diff does.

    encoder: of the model that the diffs are for; vocabulary, styles: words it knows, of which those
    that no part erases must stay. Raises DiffError for parts that do not say what they erase, or
    that move more than cross-attention.
    """
    if len(parts) < 2:
        raise SpecError("merging by fit takes two diffs or more; name another")
    check_parts(parts)
    diffs = [diff for diff, _ in parts]
    _check_attention(diffs)
    concepts = [concepts_of(diff.provenance) for diff in diffs]
    every = list(dict.fromkeys(concept for own in concepts for concept in own))
    with torch.no_grad():
        told = [
            gram(build_prompts(own, encoder, vocabulary, styles).targets, encoder, start=0.0)
            for own in concepts
        ]
        # The empty prompt is half of all that is drawn, whatever is asked for.
        stay = ("", *build_prompts(every, encoder, vocabulary, styles).preserve)
        rest = gram(stay, encoder)
    keys = dict.fromkeys(key for diff in diffs for key in diff.offsets)
    linear = [key for key in keys if projection_of(key) != "q"]
    if not linear:
        raise DiffError("the diffs move queries alone, which no prompt tells apart; merge by sum")
    offsets = {key: _fit(key, parts, told, rest) for key in linear}
    return WeightDiff(offsets, lineage(parts, "fit")).compact()


def concepts_of(provenance: Mapping[str, Any]) -> tuple[ConceptSpec, ...]:
    """Read which concepts a diff, or each part of a merged one, erases; raises DiffError."""
    if "spec" in provenance:
        return UnlearnSpec.from_json(provenance["spec"]).concepts
    inner = provenance.get("parts")
    if not inner:
        raise DiffError(
            "a diff does not say which concept it erases, which merging by fit asks for; "
            "merge by sum, mean or strongest"
        )
    return tuple(dict.fromkeys(concept for part in inner for concept in concepts_of(part)))


def _check_attention(diffs: Sequence[WeightDiff]) -> None:
    for diff in diffs:
        beyond = [key for key in diff.offsets if projection_of(key) is None]
        if beyond:
            raise DiffError(
                f"a diff moves more than cross-attention ({beyond[0]} and {len(beyond) - 1} more, "
                "as robust mode does), which no prompt tells apart; merge by sum, or unlearn all "
                "its concepts in one run"
            )


def gram(prompts: Sequence[str], encoder: TextEncoder, start: float = 1.0) -> Tensor:
    """Return the mean outer product (d, d) of the prompts' text states, in float64.

    start: weight of the start token, which all prompts share: a concept has no say in it.
    """
    total, weights = torch.zeros(()).double(), 0.0
    for first in range(0, len(prompts), ROWS):
        some = prompts[first : first + ROWS]
        states = encoder.encode(some).context.double().cpu()
        weight = torch.full(states.shape[:2], PADDING, dtype=torch.float64)
        for row, prompt in zip(weight, some, strict=True):
            row[: encoder.count_tokens(prompt) + 2] = 1.0
        weight[:, 0] = start
        total = total + torch.einsum("bnd,bn,bne->de", states, weight, states)
        weights += float(weight.sum())
    return total / weights


def _fit(key: str, parts: Parts, told: Sequence[Tensor], rest: Tensor) -> SparseOffset:
    """Solve for one weight."""
    there = [
        (s * diff.offsets[key].dense().double(), own)
        for (diff, s), own in zip(parts, told, strict=True)
        if key in diff.offsets
    ]
    shape = there[0][0].shape
    if shape[1] != len(rest):
        raise DiffError(
            f"{key} takes text of {shape[1]} numbers a token and this model writes {len(rest)}; "
            "choose the model that the diffs were made for"
        )
    ridge = RIDGE * rest.diagonal().mean() * torch.eye(len(rest), dtype=rest.dtype)
    goal = torch.stack([change @ own for change, own in there]).sum(0) / len(told)
    left = torch.stack(list(told)).mean(0) + BETA * rest + ridge
    fit = torch.linalg.solve(left, goal, left=False)
    return SparseOffset.of(GAIN[str(projection_of(key))] * fit)
