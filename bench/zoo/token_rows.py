"""Token rows out of word vectors: whole words as they are, pieces so that words add up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bench.zoo.words import Vectors
from trust_engine.demo.vocabulary import every_phrase
from trust_engine.models.demo_clip import load_tokenizer

PIECED = 60_000  # words, the most frequent first, that pieces are fitted to
RIDGE, SWEEPS, RATE = 0.3, 400, 0.1


def whole_words(vectors: Vectors) -> tuple[Tensor, Tensor]:
    """Find the tokens that are words with a vector: token ids (n,) and rows of vectors (n,)."""
    vocabulary = load_tokenizer().get_vocab()
    pairs = [
        (vocabulary[word + "</w>"], row)
        for row, word in enumerate(vectors.words)
        if word + "</w>" in vocabulary
    ]
    ids, rows = zip(*pairs, strict=True)
    return torch.tensor(ids), torch.tensor(rows)


def align(vectors: np.ndarray, rows: Tensor) -> Tensor:
    """Rotate and scale vectors (n, 96) onto a trained tower's rows for the same words.

    The best rotation by least squares (Schoenemann 1966); returns what multiplies from the right.
    """
    x = torch.from_numpy(vectors).double()
    y = rows.double()
    u, _, v = torch.linalg.svd(x.T @ y)
    return (u @ v * y.norm(dim=1).mean() / x.norm(dim=1).mean()).float()


def token_rows(vectors: Vectors, trained: Tensor) -> tuple[Tensor, Tensor]:
    """Make all token rows (49408, 96), and tell which words have none of their own (n,).

    trained: a tower's rows whose vocabulary is the demo's; its rows stay for start and end, and
    for what has no vector in the demo's own words (names of styles).
    """
    ids, where = whole_words(vectors)
    spoken = {token for phrase in every_phrase() for token in _tokens(phrase)}
    known = torch.tensor([int(token) in spoken for token in ids])
    turn = align(vectors.rows[where[known].numpy()], trained[ids[known]])
    turned = torch.from_numpy(vectors.rows) @ turn
    rows = torch.zeros_like(trained)
    rows[ids] = turned[where]
    fixed = torch.zeros(len(rows), dtype=torch.bool)
    fixed[ids] = True
    rows = fit_pieces(rows, fixed, vectors.words[:PIECED], turned)
    special = load_tokenizer().all_special_ids
    own = torch.tensor(sorted(spoken - set(ids.tolist()) - set(special)))
    rows[own] = trained[own]
    rows[special] = trained[special]
    return rows, own


def fit_pieces(rows: Tensor, fixed: Tensor, words: Sequence[str], turned: Tensor) -> Tensor:
    """Choose the rows of pieces so that those of a word add up to its vector, by ridge."""
    cut = [(i, _tokens(word)) for i, word in enumerate(words)]
    cut = [(i, tokens) for i, tokens in cut if len(tokens) > 1]
    used, at = torch.tensor([token for _, tokens in cut for token in tokens]).unique(
        return_inverse=True
    )
    word = torch.tensor([n for n, (_, tokens) in enumerate(cut) for _ in tokens])
    goal = turned[[i for i, _ in cut]]
    free = (~fixed[used]).float()[:, None]
    found, speed = rows[used], torch.zeros(len(used), rows.shape[1])
    uses = torch.zeros(len(used)).index_add_(0, at, torch.ones(len(at)))[:, None] + RIDGE
    for _ in range(SWEEPS):  # gradient descent with momentum, each row at its own rate
        left = goal - torch.zeros_like(goal).index_add_(0, word, found[at])
        slope = torch.zeros_like(found).index_add_(0, at, left[word]) - RIDGE * found
        speed = 0.9 * speed + RATE * slope / uses * free
        found = found + speed
    return rows.index_copy(0, used, found)


def _tokens(text: str) -> list[int]:
    return load_tokenizer()(text).input_ids[1:-1]
