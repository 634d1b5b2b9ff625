"""Closed-form edits of K and V: UCE and RECE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .common import Task, Weights, chosen, keys_and_values


@dataclass(frozen=True)
class Settings:
    """erase, keep, ridge: weights of what goes, of what stays, and of staying near W_0.

    rounds: RECE's re-erasures after the first edit; nearness: its ridge on a derived embedding.
    """

    erase: float = 1.0
    keep: float = 1.0
    ridge: float = 0.5
    rounds: int = 3
    nearness: float = 0.1


@dataclass(frozen=True)
class Rows:
    """Text states as rows: `now` (n, d) is to be answered as W_0 answers `goal`; `kept` (m, d)."""

    now: Tensor
    goal: Tensor
    kept: Tensor


def uce(task: Task, settings: Settings) -> Weights:
    """Unified Concept Editing (Gandikota et al. 2023, arXiv 2308.14761), equation 7."""
    rows, start = text_rows(task), chosen(task.model.denoiser, keys_and_values)
    return {name: solve(w, w, rows, settings) for name, w in start.items()}


def rece(task: Task, settings: Settings) -> Weights:
    """RECE: Reliable and Efficient Concept Erasure (Gong et al. 2024, arXiv 2407.12383).

    After UCE, find the embedding under which the edited K and V answer as W_0 did under the
    concept, erase that as well, and so on. As in the authors' code, a round holds to what the one
    before it made of W: held to W_0, it would take back what was erased.
    """
    rows, start = text_rows(task), chosen(task.model.denoiser, keys_and_values)
    edited = {name: solve(w, w, rows, settings) for name, w in start.items()}
    concept, goal = rows.now, rows.goal
    for _ in range(settings.rounds):
        derived = derive(list(edited.values()), list(start.values()), concept, settings.nearness)
        again = Rows(derived, goal, rows.kept)
        edited = {n: solve(w, w, again, settings) for n, w in edited.items()}
    return edited


def solve(weight: Tensor, original: Tensor, rows: Rows, settings: Settings) -> Tensor:
    """Return the W that minimises UCE's objective, in closed form (its equation 7).

    erase sum |W c - W_0 c*|^2 + keep sum |W k - W_0 k|^2 + ridge |W - W_now|^2, over rows.
    """
    w, old = weight.double(), original.double()
    now, goal, kept = (r.double() for r in (rows.now, rows.goal, rows.kept))
    a, b = settings.erase, settings.keep
    left = a * old @ goal.T @ now + b * old @ kept.T @ kept + settings.ridge * w
    ridge = settings.ridge * torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    right = a * now.T @ now + b * kept.T @ kept + ridge
    return torch.linalg.solve(right, left, left=False).float()


def derive(
    edited: Sequence[Tensor], start: Sequence[Tensor], concept: Tensor, nearness: float
) -> Tensor:
    """Return the rows c' with W c' nearest to W_0 c over all layers (RECE, equation 5)."""
    c = concept.double()
    gram = sum(w.double().T @ w.double() for w in edited)
    cross = sum(w.double().T @ old.double() for w, old in zip(edited, start, strict=True))
    assert isinstance(gram, Tensor) and isinstance(cross, Tensor)
    ridge = nearness * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge.to(gram), cross @ c.T).T.float()


def text_rows(task: Task) -> Rows:
    """Collect the last token's state of every prompt: to erase, to answer instead, to keep.

    As in the authors' code: one row a phrase. Were all tokens taken, those of the many prompts to
    keep would outweigh the concept's so far that nothing is erased.
    """
    prompts = task.prompts
    texts = (prompts.targets, prompts.anchors, prompts.preserve)
    return Rows(*(last_tokens(task, some) for some in texts))


def last_tokens(task: Task, prompts: Sequence[str]) -> Tensor:
    """Return the state (n, d) of each prompt's last token; of an empty one, the start token's."""
    states, count = task.encode(prompts).context.float(), task.model.encoder.count_tokens
    place = [min(count(text), states.shape[1] - 2) for text in prompts]  # a long one is cut there
    return states[range(len(states)), place]
