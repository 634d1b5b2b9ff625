"""The figure for crispness: farther when blurred, and on layouts that training never draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.world import crisp, number_type
from bench.world.scenes import draw
from bench.world.training import to_tensor
from trust_engine.demo.judge import load_judge
from trust_engine.demo.vocabulary import OBJECTS, STYLES, Scene

SCENES = [Scene((name,), "blue", style) for name in ("cat", "house", "gun") for style in STYLES[:2]]


@pytest.fixture(scope="module")
def ruler() -> crisp.Ruler:
    return crisp.Ruler(load_judge())


def test_the_more_blurred_the_farther(ruler: crisp.Ruler) -> None:
    scenes = crisp.every(1, ("noto",))[::2]
    found = [crisp.blurred(ruler, scenes, factor) for factor in (1.0, 4.0, 5.5)]
    assert found[0] < found[1] < found[2]
    assert abs(found[0]) < 0.4 * found[2]  # a render is about as near as another render


def test_another_object_is_far(ruler: crisp.Ruler) -> None:
    rng = np.random.default_rng(2)
    pixels = to_tensor(np.stack([crisp.unseen(scene, rng) for scene in SCENES]))
    near, _ = ruler.to_nearest(pixels, SCENES, 41)
    far, _ = ruler.to_nearest(pixels, SCENES[::-1], 41)
    assert bool((far > near).all())


def test_its_layouts_are_not_those_that_training_draws() -> None:
    scene, trained = Scene(("cat",), "white", "noto"), set()
    for seed in range(60):
        trained.add(_outline(draw(scene, np.random.default_rng(seed), 8)))
    for how in (crisp.unseen, crisp.raised):
        shown = {_outline(how(scene, np.random.default_rng(seed))) for seed in range(40)}
        assert not shown & trained, how.__name__
    assert len(trained) == 4


def _outline(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Say where anything but the background is."""
    rows, columns = (np.abs(pixels.astype(int) - pixels[0, 0]).sum(2) > 40).nonzero()
    return int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())


def test_every_object_is_measured_in_every_style() -> None:
    scenes = crisp.every(1)
    assert len(scenes) == len(OBJECTS) * len(STYLES)
    means = crisp.by_object(torch.arange(float(len(scenes))), scenes)
    assert means["n"] == 140 and list(means["per_object"]) == list(OBJECTS)
    assert means["per_object"]["cat"] == 2.0


class Timed(torch.Tensor):
    """A matrix whose products take as long as its type's clock says."""

    clock = 0.0
    slow = torch.float32

    def __matmul__(self, other: torch.Tensor) -> torch.Tensor:
        Timed.clock += 60.0 if self.dtype == Timed.slow else 1.0
        return self


@pytest.mark.parametrize("slow", [torch.float32, torch.bfloat16])
def test_trainings_compute_in_what_is_quick_here(
    monkeypatch: pytest.MonkeyPatch, slow: torch.dtype
) -> None:
    """A processor that only emulates a type is told by the clock."""

    def ones(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype).as_subclass(Timed)

    monkeypatch.setattr(Timed, "slow", slow)
    monkeypatch.setattr(number_type.time, "perf_counter", lambda: Timed.clock)
    monkeypatch.setattr(number_type.torch, "ones", ones)
    found = number_type.quick_type.__wrapped__(torch.device("cpu"))
    assert {found, slow} == {torch.float32, torch.bfloat16}
