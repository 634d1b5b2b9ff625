"""`make world`, from nothing, in a few steps a stage and in either number type."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from bench.world import __main__ as world
from bench.world import pack, train_judge, train_unet, training
from trust_engine.models.load import DEMO


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let every stage take two small steps, as plain torch, and write into a folder of its own."""
    for stage in world.STAGES.values():
        monkeypatch.setattr(stage, "STEPS", 2)
        monkeypatch.setattr(stage, "BATCH", 4)
    monkeypatch.setattr(train_unet, "SCENES", 16)
    monkeypatch.setattr(train_unet, "GRID_STEPS", 1)
    monkeypatch.setattr(train_judge, "SCORED", 100)
    monkeypatch.setattr(torch, "compile", lambda module: module)
    monkeypatch.setattr(pack, "ASSETS", tmp_path)
    monkeypatch.setattr(train_judge, "ASSETS", tmp_path)
    monkeypatch.setattr(pack, "DEMO", tmp_path / DEMO.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("quick", [torch.float32, torch.bfloat16], ids=str)
def test_every_stage_trains_from_nothing(
    short: Path, quick: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is packed has the names and shapes of what ships, and its figures are numbers."""
    monkeypatch.setattr(training, "quick_type", lambda _: quick)
    monkeypatch.setattr(sys, "argv", ["bench.world"])
    world.main()
    for name in (DEMO.name, "clip.safetensors", "judge.safetensors"):
        with safe_open(short / name, "pt") as made, safe_open(DEMO.with_name(name), "pt") as ships:
            assert set(made.keys()) == set(ships.keys())
            for key in ships.keys():  # noqa: SIM118 - a reader of safetensors is no mapping
                tensor = made.get_tensor(key)
                assert tensor.shape == ships.get_tensor(key).shape
                assert tensor.isfinite().all()
