"""Weights of a module: loaded strictly, but for what old versions of transformers list besides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trust_engine.models.parameters import fill


class Old(nn.Module):
    """Counts its positions out in a buffer that its state dict lists."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2, bias=False)
        self.register_buffer("position_ids", torch.arange(3)[None])


def test_position_ids_need_no_weight() -> None:
    module = Old()
    fill(module, {"inner.weight": torch.eye(2)})
    assert torch.equal(module.inner.weight, torch.eye(2))
    assert module.position_ids.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({}, "inner.weight"),
        ({"inner.weight": torch.eye(2), "extra": torch.eye(2)}, "extra"),
        ({"inner.weight": torch.eye(3)}, "size mismatch"),
    ],
)
def test_everything_else_is_strict(weights: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        fill(Old(), weights)
