"""The main job on the tiny model: deterministic, and the lent model comes back untouched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from toys.tiny import HostEncoder, WordEncoder, frozen_bits, hooks_of, tiny_model, tiny_spec
from trust_engine.diff import WeightDiff, applied, fingerprint, load_diff, save_diff
from trust_engine.errors import SpecError
from trust_engine.models.attention import cross_attention_modules, read_layer
from trust_engine.models.contract import Conditioning, LentModel, projections
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.run import StepReport, Unlearning

STYLES = ("diffusers", "ldm")


def finish(model: LentModel, spec: UnlearnSpec) -> tuple[Unlearning, list[StepReport]]:
    """Run to the end."""
    run = Unlearning(model, spec)
    return run, list(run)


def saved(diff: WeightDiff, folder: Path) -> str:
    """Hash the bytes that a diff has as a file."""
    save_diff(diff, folder / "diff")
    return hashlib.sha256((folder / "diff").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def plain() -> tuple[LentModel, Unlearning]:
    """Run once to the end, for all tests that only look at what came of it."""
    model = tiny_model()
    return model, finish(model, tiny_spec())[0]


class Counter:
    """Stand between the engine and a denoiser: count samples, fail on demand."""

    def __init__(self, model: LentModel, fail: BaseException | None = None, at: int = 3) -> None:
        self.samples, self.calls, self.fail, self.at = 0, 0, fail, at
        self.forward = model.denoiser.forward
        self.model = replace(model, denoiser=replace(model.denoiser, forward=self))

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        assert len(x) == len(t) == len(cond)
        assert not torch.is_grad_enabled()
        self.samples, self.calls = self.samples + len(x), self.calls + 1
        output = self.forward(x, t, cond)
        if self.fail is not None and self.calls == self.at:
            raise self.fail
        return output


class BrokenEncoder(WordEncoder):
    """Fail at the n-th call."""

    def __init__(self, at: int) -> None:
        self.calls, self.at = 0, at

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("the host's text encoder fell over")
        return super().encode(prompts)


def test_same_seed_same_bytes_another_seed_others(
    plain: tuple[LentModel, Unlearning], tmp_path: Path
) -> None:
    random_state = torch.random.get_rng_state()
    two, other = (saved(finish(tiny_model(), tiny_spec(seed=s))[0].diff, tmp_path) for s in (0, 1))
    assert saved(plain[1].diff, tmp_path) == two != other
    # Nothing but the seed decides, and nobody else's random numbers are spent.
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_both_denoisers_give_the_same_diff(
    plain: tuple[LentModel, Unlearning], tmp_path: Path
) -> None:
    ldm, _ = finish(tiny_model("ldm"), tiny_spec())
    assert saved(ldm.diff, tmp_path) == saved(plain[1].diff, tmp_path)


def test_the_largest_seed_works() -> None:
    next(iter(Unlearning(tiny_model(), tiny_spec(seed=2**63 - 1))))


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("style", STYLES)
def test_progress_counts_what_is_really_done(style: str, cfg: float) -> None:
    counter = Counter(tiny_model(style))
    run, reports = finish(counter.model, tiny_spec(cfg=cfg))
    assert run.knowledge is not None and run.knowledge.passes == run.asking > 0
    assert run.passes == counter.samples - run.asking == reports[-1].passes > 0
    assert reports[-1].done == reports[-1].total == run.total
    done = [report.done for report in reports]
    assert done == sorted(set(done))
    assert {report.stage.split()[0] for report in reports} == {"asking", "recording", "unlearning"}


def test_the_diff_says_where_it_comes_from(
    plain: tuple[LentModel, Unlearning], tmp_path: Path
) -> None:
    (model, run), spec = plain, tiny_spec()
    save_diff(run.diff, tmp_path / "a")
    diff = load_diff(tmp_path / "a")
    assert UnlearnSpec.from_json(diff.provenance["spec"]) == spec
    assert diff.provenance["base"] == fingerprint(model.denoiser)
    assert diff.provenance["passes"] == run.passes
    assert set(diff.offsets) == set(projections(model.denoiser))
    for key, offset in diff.offsets.items():
        neurons = diff.provenance["neurons"][key.removesuffix(".weight")]
        assert 0 <= len(offset.indices) <= neurons["last"] <= neurons["entries"] == offset.numel
    assert 0 < diff.share <= spec.budget


def test_the_base_is_the_model_the_run_began_with() -> None:
    """Also when `diff` is read while another diff is applied, as for a preview."""
    model = tiny_model()
    run, _ = finish(model, tiny_spec())
    with applied(model.denoiser, [(run.diff, 1.0)]):
        base = run.diff.provenance["base"]
    assert base == fingerprint(model.denoiser)


@pytest.mark.parametrize("objective", ["none", "csr", "cip"])
def test_the_patched_layers_answer_the_concept_as_its_anchor(objective: str) -> None:
    """And did not before: the effect falls, in each layer, seen through the patched module."""
    model = tiny_model()
    spec = tiny_spec(objective=objective, steps=30, budget=0.3, xi=0.0, beta=0.0)
    run, _ = finish(model, spec)
    prompts = [run.prompts.targets[0], run.prompts.anchors[0]]
    now, goal = model.encoder.encode(prompts).context.split(1)
    modules = cross_attention_modules(model.denoiser)
    torch.manual_seed(0)
    for module in modules.values():
        x, base = torch.randn(1, 50, module.to_q.in_features), read_layer(module)
        before = (base(x, now) - base(x, goal)).square().mean()
        with applied(model.denoiser, [(run.diff, 1.0)]):
            after = (read_layer(module)(x, now) - base(x, goal)).square().mean()
        assert after < 0.5 * before


@pytest.mark.parametrize("style", STYLES)
def test_the_lent_model_is_untouched(style: str) -> None:
    model = tiny_model(style)
    module = model.denoiser.module
    module.train()
    next(iter(module.parameters())).requires_grad_(True)
    before = frozen_bits(module)
    run, _ = finish(model, tiny_spec())
    assert run.diff.changed > 0
    assert frozen_bits(module) == before
    assert all(part.training for part in module.modules())
    assert not list(hooks_of(module))


def from_denoiser(model: LentModel, error: BaseException) -> LentModel:
    """Fail in the third call of the UNet."""
    return Counter(model, error).model


def from_encoder(at: int) -> Callable[[LentModel, BaseException], LentModel]:
    """Fail in the n-th call of the text encoder."""
    return lambda model, _: replace(model, encoder=BrokenEncoder(at))


@pytest.mark.parametrize(
    ("breaks", "error"),
    [
        (from_denoiser, RuntimeError("out of memory")),
        (from_denoiser, KeyboardInterrupt()),
        (from_encoder(1), RuntimeError("encoder")),
        (from_encoder(2), RuntimeError("encoder")),
    ],
)
def test_a_failure_inside_leaves_no_trace(
    breaks: Callable[[LentModel, BaseException], LentModel], error: BaseException
) -> None:
    model = tiny_model()
    before, run = frozen_bits(model.denoiser.module), None
    with pytest.raises(type(error)):
        run = Unlearning(breaks(model, error), tiny_spec())
        list(run)
    assert frozen_bits(model.denoiser.module) == before
    assert not list(hooks_of(model.denoiser.module))
    with pytest.raises(SpecError, match="not finished"):
        _ = run.diff if run else None
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("stage", ["recording", "unlearning"])
@pytest.mark.parametrize("way", ["close", "break", KeyboardInterrupt])
def test_stopping_half_way_leaves_no_trace(stage: str, way: str | type[BaseException]) -> None:
    model = tiny_model()
    module = model.denoiser.module
    before, run = frozen_bits(module), Unlearning(model, tiny_spec())
    reports = iter(run)
    try:
        for report in reports:
            if report.stage.startswith(stage):
                assert not list(hooks_of(module))  # the host may draw meanwhile
                if isinstance(way, type):
                    raise way
                break
    except KeyboardInterrupt:
        pass
    if way == "close":
        reports.close()  # type: ignore[attr-defined]
    assert frozen_bits(module) == before
    assert not list(hooks_of(module))
    with pytest.raises(SpecError, match="not finished"):
        _ = run.diff


@pytest.mark.parametrize("fresh", [True, False])
def test_diff_before_the_end_is_refused(fresh: bool) -> None:
    """Also when an earlier run of the same object came to its end."""
    run = Unlearning(tiny_model(), tiny_spec())
    if not fresh:
        list(run)
        next(iter(run))
    with pytest.raises(SpecError, match="iterate over it to its end"):
        _ = run.diff


@pytest.mark.parametrize("style", STYLES)
def test_runs_in_inference_mode_on_inference_tensors(
    style: str, plain: tuple[LentModel, Unlearning], tmp_path: Path
) -> None:
    """As ComfyUI executes nodes; between reports the host's own mode holds."""
    with torch.inference_mode():
        model = replace(tiny_model(style), encoder=HostEncoder())
        assert projections(model.denoiser)[next(iter(projections(model.denoiser)))].is_inference()
        run = Unlearning(model, tiny_spec())
        for _ in run:
            assert torch.is_inference_mode_enabled()
        inside = saved(run.diff, tmp_path)
    assert inside == saved(plain[1].diff, tmp_path)


def test_a_late_end_does_not_switch_the_hosts_mode() -> None:
    with torch.inference_mode():
        reports = iter(Unlearning(tiny_model(), tiny_spec()))
        next(reports)
    reports.close()  # type: ignore[attr-defined]
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_the_host_may_draw_between_reports(
    plain: tuple[LentModel, Unlearning], tmp_path: Path
) -> None:
    """A preview in the middle of a recording is not recorded."""
    model = tiny_model()
    run = Unlearning(model, tiny_spec())
    for _ in run:
        cond = Conditioning(torch.full((1, 3, 16), 5.0))
        with torch.no_grad():
            model.denoiser(torch.randn(1, 4, 8, 8), torch.tensor([500]), cond)
    assert saved(run.diff, tmp_path) == saved(plain[1].diff, tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (tiny_spec(saliency="clip"), "without a CLIP score"),
        (tiny_spec(engine="global", hessian="exact", checkpointing=True), "do not go together"),
        (UnlearnSpec((ConceptSpec(("gun " * 80,)),)), "at most 75 fit"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(spec: UnlearnSpec, message: str) -> None:
    counter = Counter(tiny_model())
    with pytest.raises(SpecError, match=message):
        Unlearning(counter.model, spec)
    assert counter.calls == 0


def test_neighbours_are_proposed_and_can_be_named() -> None:
    proposed = Unlearning(tiny_model(), UnlearnSpec((ConceptSpec(("Cat",)),))).prompts.preserve
    assert len(proposed) >= 3
    assert not any("cat" in prompt.lower().split() for prompt in proposed)
    assert any("cat" in prompt for prompt in Unlearning(tiny_model(), tiny_spec()).prompts.preserve)


def test_an_anchor_replaces_the_concept() -> None:
    spec = UnlearnSpec((ConceptSpec(("gun",), anchor="a toy"),))
    prompts = Unlearning(tiny_model(), spec).prompts
    assert len(prompts.anchors) == len(prompts.targets)
    assert all("toy" in prompt for prompt in prompts.anchors)
    assert all("gun" in prompt for prompt in prompts.targets)


def test_the_neuron_report_is_json(plain: tuple[LentModel, Unlearning]) -> None:
    json.dumps(plain[1].diff.provenance, allow_nan=False)
