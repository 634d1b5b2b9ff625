"""Memory: estimates hold against what tensors really take, and refusals say what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import trust_engine.models.memory as memory
from toys.tiny import tiny_model, tiny_spec
from trust_engine.benchmark.counting import pass_gb
from trust_engine.benchmark.random_models import family_for, schedule_for
from trust_engine.benchmark.tensor_memory import LiveTensors
from trust_engine.cli.wording import in_flags
from trust_engine.errors import ModelError, OutputError
from trust_engine.io.outputs import check_outputs
from trust_engine.models.attention import CrossAttention
from trust_engine.models.contract import projections
from trust_engine.models.load import load_model
from trust_engine.models.memory import (
    AT_ONCE,
    GB,
    MEMORY,
    batch_for,
    check_unlearning,
    exhaustion_told,
    recording_needs,
    training_needs,
)
from trust_engine.models.sampler import SamplerSettings
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.layerwise import LayerPairs, LayerProblem
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.trajectory import Recording, record

CPU = torch.device("cpu")
GUN = ConceptSpec(("gun",))
SIZES = {"sd15": (64, 64), "sd2": (96, 96), "sdxl": (128, 128)}


@pytest.mark.parametrize(
    "name", ["sd15", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sd2", "sdxl"))]
)
def test_the_estimate_of_a_call_holds_at_full_size(name: str) -> None:
    """Never too low, and not more than twice what is counted tensor by tensor."""
    family = family_for(name)
    assert family.sizes[schedule_for(name).prediction == "v"] == SIZES[name]
    counted = pass_gb(name, 2)
    assert counted <= recording_needs(1, SIZES[name], torch.float16) / GB < 2 * counted


@pytest.mark.parametrize(
    ("choice", "name", "batch"),
    [
        ("low", "sd15", 1), ("low", "sdxl", 1), ("auto", "sd15", 4), ("auto", "sdxl", 1),
        ("high", "sd15", 8), ("high", "sdxl", 8),
    ],
)  # fmt: skip
def test_more_memory_records_more_prompts_at_once(choice: str, name: str, batch: int) -> None:
    assert batch_for(choice, SIZES[name], torch.float16) == batch


@pytest.mark.parametrize("choice", ["auto", "high"])
def test_the_demo_is_recorded_as_it_always_was(choice: str) -> None:
    assert batch_for(choice, (16, 16), torch.float32) == AT_ONCE == 8


def test_choices_are_those_that_are_described() -> None:
    assert list(MEMORY) == ["low", "auto", "high"]


@pytest.mark.parametrize("engine", ["local", "global"])
def test_the_estimate_of_training_holds(engine: str) -> None:
    model = tiny_model()
    run = Unlearning(model, tiny_spec(engine=engine, objective="none", steps=4))
    reports = iter(run)
    while next(reports).standing is None:
        pass
    with LiveTensors() as live:
        next(reports)
    needed = training_needs(projections(model.denoiser), engine == "global")
    assert needed > 0
    weights = 4 * sum(w.numel() for w in projections(model.denoiser).values())
    assert needed <= 4 * 4 * weights
    assert live.peak > needed / 8


def test_too_little_memory_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: int(1e9))
    check_unlearning(int(0.8e9), int(0.1e9), CPU)
    with pytest.raises(ModelError, match=r"about 2\.2 GB .* 1\.0 GB are free; close other") as low:
        check_unlearning(int(2e9), int(0.5e9), CPU, "take {engine local}")
    assert "memory low (0.6 GB)" in str(low.value)
    assert "take engine local" in str(low.value)
    with pytest.raises(ModelError) as other:
        check_unlearning(int(2e9), int(2e9), CPU)
    assert "memory low" not in str(other.value)
    assert "engine local" not in str(other.value)


def test_where_the_system_does_not_tell_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: None)
    check_unlearning(10**18, 0, CPU)


def test_running_out_of_memory_is_told_in_a_line() -> None:
    with pytest.raises(ModelError, match="memory ran out"), exhaustion_told():
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="other"), exhaustion_told():
        raise RuntimeError("other")


def test_free_memory_is_told_here() -> None:
    assert memory.free_memory(CPU) is None or memory.free_memory(CPU) > 1e6  # type: ignore[operator]


def recorded(batch: int) -> Recording:
    """Record ten prompts, some at once."""
    model = tiny_model()
    cond = model.encoder.encode([f"a {word}" for word in "abcdefghij"])
    uncond = model.encoder.encode([""])
    settings = SamplerSettings(2, 4.0)
    return list(record(model.denoiser, cond, uncond, settings, (8, 8), 3, batch))[-1]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_how_many_are_recorded_at_once_changes_rounding_alone(batch: int) -> None:
    """The same positions are kept, and the passes are as many."""
    one, other = recorded(8), recorded(batch)
    assert other.passes == one.passes == 10 * 2 * 2
    for name, states in one.cond.items():
        torch.testing.assert_close(other.cond[name], states, atol=2e-2, rtol=1e-2)
        torch.testing.assert_close(other.uncond[name], one.uncond[name], atol=2e-2, rtol=1e-2)
    torch.testing.assert_close(other.latents, one.latents, atol=1e-3, rtol=1e-3)


def test_a_loaded_model_lends_by_the_memory_it_may_take() -> None:
    model = load_model("demo", "cpu")
    assert [model.lend(choice).batch for choice in MEMORY] == [1, 8, 8]


def test_room_is_asked_for_both_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("demo", "cpu")
    model.check_room(UnlearnSpec((GUN,), engine="global"), "high")
    monkeypatch.setattr(memory, "free_memory", lambda _: 1)
    ways: list[tuple[dict[str, Any], str]] = [
        ({}, "take --memory low"),
        ({"engine": "global"}, "take --engine local"),
        ({"robust": True}, "leave --robust out"),
    ]
    for settings, says in ways:
        with pytest.raises(ModelError) as refused:
            model.check_room(UnlearnSpec((GUN,), **settings), "auto")
        assert says in refused.value.worded(in_flags)


def test_goals_worked_out_once_are_those_of_each_step() -> None:
    torch.manual_seed(1)
    layer = CrossAttention(*(torch.randn(8, 8) for _ in range(4)), None, 2)
    x, context = torch.randn(5, 60, 8), torch.randn(50, 7, 8)

    def situation(prompts: int) -> LayerPairs:
        rows = torch.arange(prompts) % 5
        return LayerPairs(x, rows, context[:prompts], context[-prompts:])

    problem = LayerProblem(layer, situation(6), situation(50), 0.5, 0)
    again = LayerProblem(layer, situation(6), situation(50), 0.5, 0)
    assert problem.erase.answers is not None
    assert problem.erase.answers.shape == (6, 60, 8)
    again.erase, again.keep = situation(6), situation(50)
    theta = problem.base + 0.1
    for step in range(3):
        assert float(problem.effect(theta, step)) == pytest.approx(float(again.effect(theta, step)))
        assert float(problem.harm(theta, step)) == pytest.approx(float(again.harm(theta, step)))


def test_a_model_folder_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    with pytest.raises(OutputError, match="is the model itself, or in it"):
        check_outputs([tmp_path / "unet" / "diff.safetensors"], {"the model": str(tmp_path)})
    check_outputs([tmp_path.parent / "diff.safetensors"], {"the model": str(tmp_path)})
