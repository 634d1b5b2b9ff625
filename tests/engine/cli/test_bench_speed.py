"""The bench: what it counts is what was done, on the tiny families."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import trust_engine.benchmark.random_models
import trust_engine.benchmark.run as speed
from toys.tiny import frozen_bits
from toys.tiny_families import tiny_family
from trust_engine.benchmark.baselines import esd_update, salun_update, sample_for, uce
from trust_engine.benchmark.counting import (
    PAIR,
    WORD,
    Work,
    count_layer,
    count_scrubbing,
    pass_gb,
    pass_tflop,
    problem_for,
)
from trust_engine.benchmark.random_models import FAMILY_NAMES, random_model
from trust_engine.benchmark.tensor_memory import LiveTensors
from trust_engine.cli.main import main
from trust_engine.models.attention import CrossAttention
from trust_engine.models.contract import projections
from trust_engine.models.families import ModelFamily
from trust_engine.models.load import LoadedModel
from trust_engine.models.unet_keys import UNetShape
from trust_engine.prompts.concept import build_prompts
from trust_engine.spec import UnlearnSpec
from trust_engine.unlearn.layerwise import LayerPairs
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.scrubbing.blocks import picture_layers
from trust_engine.unlearn.scrubbing.picture_stage import drawing_passes, passes_of
from trust_engine.unlearn.scrubbing.run import ScrubPlan
from trust_engine.unlearn.word_knowledge import Knowledge

CPU = torch.device("cpu")
FEW = {"passes": 48, "steps": 2}


@pytest.fixture(autouse=True)
def _tiny_families(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = next(f for f in trust_engine.models.families.MODELS if f.unet.name == "demo")
    tiny = [
        demo if name == "demo" else shallow(tiny_family(name)) for name in FAMILY_NAMES.values()
    ]
    families = tuple(tiny)
    monkeypatch.setattr(trust_engine.benchmark.random_models, "MODELS", families)


def shallow(family: ModelFamily) -> ModelFamily:
    """Leave one block a level, for a block is counted like any other."""
    config = {**family.unet.config, "layers_per_block": 1}
    if "transformer_layers_per_block" in config:
        config["transformer_layers_per_block"] = (1, 1, 2)
    shape = UNetShape(1, family.unet.shape.attention)
    return replace(family, unet=replace(family.unet, shape=shape, config=config))


class Counted:
    """Count the forward passes of a model's UNet, with gradients and without."""

    def __init__(self, model: LoadedModel) -> None:
        self.calls: Counter[bool] = Counter()
        model.denoiser.module.register_forward_hook(self._see, always_call=True)

    def _see(self, _module: object, args: tuple, _output: object) -> None:
        self.calls[torch.is_grad_enabled()] += len(args[0])


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_random_model_is_finite_and_the_same_each_time(name: str) -> None:
    one, two = (random_model(name, CPU) for _ in range(2))
    assert frozen_bits(one.denoiser.module) == frozen_bits(two.denoiser.module)
    stored = torch.float32 if name == "demo" else torch.float16  # the demo is widened when loaded
    assert {w.dtype for w in one.denoiser.module.parameters()} == {stored}
    batch = sample_for(one)
    with torch.no_grad():
        output = one.denoiser(batch.x, batch.t, batch.cond)
    assert bool(output.isfinite().all())
    assert float(output.std()) > 0.01


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_layer_in_training_holds_its_weights_their_moments_and_what_all_prompts_bring(
    name: str,
) -> None:
    found = projections(random_model(name, CPU).denoiser)
    widest = max(weight.numel() for key, weight in found.items() if ".to_k" in key)
    context = max(weight.shape[1] for key, weight in found.items() if ".to_k" in key)
    prompts = 4 * (26 + 198) * 77 * context  # bytes; 26 to erase and 198 to keep
    moments = 4 * 2 * widest * 5  # of K and V: themselves, theta - theta_0, Adam's three
    assert prompts + moments < 1e9 * count_layer(name) < 1e9


@pytest.mark.parametrize("work", [WORD, PAIR])
def test_what_is_counted_is_what_a_layer_is_trained_on(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of the engine's own lists, and rows and contexts of a real run."""
    model = random_model("sd15", CPU)
    prompts = build_prompts([work.concept], model.encoder, model.vocabulary, model.styles)
    assert (len(prompts.targets), len(prompts.preserve)) == (work.targets, work.preserve)
    met = []

    class Stopped(Exception):
        pass

    def stop(
        layer: CrossAttention, erase: LayerPairs, keep: LayerPairs, eta: float, _: int
    ) -> None:
        met.extend([layer, erase, keep, eta])
        raise Stopped

    monkeypatch.setattr("trust_engine.unlearn.units.LayerProblem", stop)
    with pytest.raises(Stopped):
        list(Unlearning(model.lend(), UnlearnSpec((work.concept,)), knowledge=Knowledge()))
    layer, erase, keep, eta = met
    counted = problem_for(layer, work)
    assert counted.eta == eta
    for real, zeros in ((erase, counted.erase), (keep, counted.keep)):
        assert torch.equal(real.rows, zeros.rows)
        for part in ("x", "now", "goal", "push"):
            one, two = getattr(real, part), getattr(zeros, part)
            assert (one is None) == (two is None)
            assert one is None or one.shape == two.shape, part


def test_the_command_measures_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "REPEATS", 1)  # the best of several would be quieter, not different
    out = tmp_path / "b.json"
    arguments = ["--device", "cpu", "--family", "sdxl", "--passes", "48", "--steps", "2"]
    assert main(["bench", "speed", *arguments, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    shown = capsys.readouterr().out
    assert all(part in shown for part in found)
    local, projected = found["local"], found["projected"]
    counted = found["counted at full size"]
    assert (
        found["counted at full size, a combination"]["training_tflop"] > counted["training_tflop"]
    )
    assert counted["recording_gb"] > 4 * counted["sampling_gb"] > 0
    assert 0 < counted["training_share_of_tflop"] < 1
    above = counted["training_above_sampling_gb"]
    assert above == pytest.approx(count_layer("sdxl") - counted["sampling_gb"], rel=1e-6)
    assert (local["passes"], local["backward"], local["layers"]) == (48, 0, 11)
    assert local["seconds"] >= local["unet_seconds"] + local["training_seconds"] > 0
    assert counted["passes_at_most"] <= 640
    assert 0 < projected["training_share"] < 1
    assert found["global"]["passes_a_step"] > found["global"]["backward_a_step"] > 0
    one_step = found["baselines"]["esd_step"]
    assert one_step["seconds"] > 10 * one_step["update_seconds"] / 3 > 0
    assert all(value > 0 for value in found["ratios"].values())


def test_projecting_a_run_at_the_defaults_gives_the_run_itself() -> None:
    """Seconds a pass and a step, times the engine's own numbers."""
    spec = speed.UnlearnSpec((WORD.concept,))
    local = {
        "seconds_a_pass": 0.5, "layers": 16, "seconds_a_layer_step": 0.01,
    }  # fmt: skip
    found = speed.project(local, 600)
    assert found["recording_seconds"] == 300
    training = spec.steps * 16 * 0.01
    assert found["training_seconds"] == pytest.approx(training)
    assert found["training_share"] == pytest.approx(training / (300 + training), abs=1e-4)


@pytest.mark.parametrize(("update", "plain", "trained"), [(esd_update, 2, 1), (salun_update, 1, 2)])
def test_a_step_costs_the_passes_that_are_reported(update, plain: int, trained: int) -> None:  # type: ignore[no-untyped-def]
    model = random_model("sd15", CPU)
    before, counted = frozen_bits(model.denoiser.module), Counted(model)
    update(model, sample_for(model))
    assert (counted.calls[False], counted.calls[True]) == (plain, trained)
    assert frozen_bits(model.denoiser.module) == before


def test_uce_takes_no_pass_and_solves_its_equation() -> None:
    from trust_engine.benchmark.baselines import _closed_form

    model = random_model("sd15", CPU)
    counted = Counted(model)
    uce(model)
    assert not counted.calls
    weight = next(iter(projections(model.denoiser).values())).float()
    width = weight.shape[1]
    edited, goal, stay = torch.randn(3, 5, width)
    found = _closed_form(weight, edited, goal, stay)

    def loss(w: torch.Tensor) -> torch.Tensor:
        off = (edited @ w.T - goal @ weight.T).square().sum()
        kept = (stay @ w.T - stay @ weight.T).square().sum()
        return off + kept + (w - weight).square().sum()

    leaf = found.requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(leaf), leaf)
    assert float(slope.abs().max()) < 1e-3 * float(loss(weight).detach())


def test_counted_work_is_that_of_the_real_thing() -> None:
    """Work and tensors grow with the samples; the tiny model's pass is counted by hand, too."""
    one = pass_tflop("sdxl", 1)
    assert pass_tflop("sdxl", 4) == pytest.approx(4 * one, rel=0.01)
    assert pass_gb("sdxl", 4) == pytest.approx(4 * pass_gb("sdxl", 1), rel=0.05)
    model = random_model("sdxl", CPU)
    batch = sample_for(model)
    plain = sdpa_kernel(SDPBackend.MATH)  # of a CPU's fused kernel the counter knows nothing
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        model.denoiser(batch.x, batch.t, batch.cond)
    assert one == pytest.approx(counter.get_total_flops() / 1e12)


def test_scrubbing_is_counted_as_it_is_done() -> None:
    """Its passes are a robust run's but for two; its memory holds a pass, moments and weights."""
    size = count_scrubbing("sdxl")
    run = Unlearning(random_model("sdxl", CPU).lend(), replace(WORD.spec, robust=True))
    assert run.lists is not None
    assert size.passes == drawing_passes(run.spec, run.lists) + passes_of(run.spec)
    assert size.tflop == pytest.approx(size.passes * pass_tflop("sdxl", 1))
    widest = max(size.widths)
    rows = ScrubPlan().batch
    assert size.above_gb > pass_gb("sdxl", rows) - pass_gb("sdxl", 2) + 4 * widest**2 / 1e9
    assert size.relabelling_gb < size.in_place_gb < 2  # what docs/results/scrubbing.md promises
    assert sum(size.widths.values()) < len(picture_layers(run.model.denoiser))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_live_tensors_are_counted_once_and_freed(device: str) -> None:
    outside = torch.zeros(1000, device=device)
    with LiveTensors() as live:
        one = outside + 1
        part = one.view(10, 100)[2:]
        outside.view(10, 100)
        one.add_(1)
        assert live.bytes == 4000
        two = one * 2
        assert live.bytes == 8000
        del two, one
        assert live.bytes == 4000
        del part
    assert (live.bytes, live.peak) == (0, 8000)


def test_the_global_engine_is_refused_where_memory_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    import trust_engine.models.memory

    model = random_model("sd15", CPU)
    monkeypatch.setattr(trust_engine.models.memory, "free_memory", lambda _: 1000)
    asked = speed.Question("sd15", CPU, **FEW)
    assert "GB are free" in speed._global(model, asked)["refused"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--resolution", "100"], "multiple of 64"),
        (["--resolution", "8"], "resolution is 8"),
        (["--steps", "-1"], "steps"),
        (["--family", "flux"], "invalid choice"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "speed", "--device", "cpu", "--family", "sd15", *arguments]
    try:
        code: object = main(command)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert says in capsys.readouterr().err
