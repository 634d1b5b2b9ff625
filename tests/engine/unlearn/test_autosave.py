"""No run is lost: stopped, killed, damaged, in each other's way; what goes on ends the same."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from engine.unlearn.test_unlearn import saved
from safetensors import safe_open
from safetensors.torch import save_file

from toys.tiny import WordEncoder, frozen_bits, tiny_model, tiny_spec
from trust_engine.errors import SpecError
from trust_engine.models.contract import LentModel
from trust_engine.unlearn import run_state as resume
from trust_engine.unlearn.autosave import Keeping
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.run_state import load_state, save_state
from trust_engine.unlearn.run_store import RunStore

# Recorded in four batches; few entries are marked, so that none of them hangs on rounding.
SPEC = tiny_spec(steps=2, passes=128, xi=1.0, budget=0.05)
ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


class Whole(NamedTuple):
    """What an undisturbed run gives: the diff's hash, and its reports, in all and of two stages."""

    text: str
    total: int
    asked: int
    recorded: int


class Stop(Exception):
    """What a host raises when its user has had enough."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Run once undisturbed."""
    run = Unlearning(tiny_model(), SPEC)
    stages = [report.stage.split()[0] for report in run]
    text = saved(run.diff, tmp_path_factory.mktemp("whole"))
    return Whole(text, len(stages), stages.count("asking"), stages.count("recording"))


def stopped(store: RunStore, at: int, model: LentModel | None = None, **how: Any) -> Keeping:
    """Run until report number `at`, where the host's interrupt comes."""
    run = Unlearning(model or tiny_model(), SPEC)
    with pytest.raises(Stop), Keeping(run, store, **how) as kept:
        for i, _ in enumerate(kept):
            if i == at:
                raise Stop
    return kept


def finished(store: RunStore | None, model: LentModel | None = None, **how: Any) -> Keeping:
    """Run to the end."""
    with Keeping(Unlearning(model or tiny_model(), SPEC), store, **how) as kept:
        for _ in kept:
            pass
    return kept


@pytest.mark.parametrize("at", ["first", "recording", "boundary", "training", "last"])
def test_a_stopped_run_goes_on_when_it_is_started_again(
    at: str, tmp_path: Path, whole: Whole
) -> None:
    """Also in the middle of recording, where nothing is done twice."""
    text, total, asked, recorded = whole
    over = asked + recorded
    places = {"first": asked, "recording": asked + recorded // 2, "boundary": over - 1,
              "training": over + (total - over) // 2, "last": total - 1}  # fmt: skip
    store, number = RunStore(tmp_path / "runs"), places[at]
    first = stopped(store, number)
    assert "stopped at" in first.said[-1]
    (share,) = re.findall(r"stopped at (\d+)%", first.said[-1])
    assert store.contents.stopped == 1
    run = Unlearning(tiny_model(), SPEC)
    with Keeping(run, store) as kept:
        more = list(kept)
    assert f"going on with a run that was stopped at {min(99, int(share))}%" in kept.said[0]
    assert total - number - 1 <= len(more) <= total - number
    assert saved(run.diff, tmp_path) == text
    assert (store.contents.stopped, store.contents.finished) == (0, 1)


@pytest.mark.parametrize("at", ["begun", "over"])
def test_a_run_stopped_while_it_asks_has_nothing_to_keep(
    at: str, tmp_path: Path, whole: Whole
) -> None:
    """It says so, leaves nothing behind, and the next run does it all."""
    store = RunStore(tmp_path / "runs")
    first = stopped(store, {"begun": 0, "over": whole.asked - 1}[at])
    assert first.said == ["stopped before there was anything to keep"]
    assert (store.contents.stopped, store.contents.finished) == (0, 0)
    run = Unlearning(tiny_model(), SPEC)
    with Keeping(run, store) as kept:
        assert len(list(kept)) == whole.total
    assert not kept.said and saved(run.diff, tmp_path) == whole.text


def test_a_run_that_is_refused_once_the_model_was_asked_leaves_no_folder(tmp_path: Path) -> None:
    run = Unlearning(tiny_model(), SPEC)
    with pytest.raises(SpecError), Keeping(run, RunStore(tmp_path / "cache" / "runs")):
        assert (tmp_path / "cache" / "runs").is_dir(), "it is locked while the model is asked"
        assert list(run.ask())
        raise SpecError("two things under one name")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # three runs in which all weights learn
def test_robust_mode_goes_on_within_its_drawing(tmp_path: Path) -> None:
    spec = tiny_spec(steps=2, passes=20, robust=True)
    whole = Unlearning(tiny_model(), spec)
    drawn = sum(report.stage == "recording" for report in whole)
    store = RunStore(tmp_path / "runs")
    with pytest.raises(Stop), Keeping(Unlearning(tiny_model(), spec), store) as kept:
        for i, _ in enumerate(kept):
            if i == drawn // 2:
                raise Stop
    run = Unlearning(tiny_model(), spec)
    with Keeping(run, store) as kept:
        more = [report.stage for report in kept]
    assert more.count("recording") < drawn
    assert saved(run.diff, tmp_path) == saved(whole.diff, tmp_path)
    assert run.diff.provenance["passes"] == whole.diff.provenance["passes"]


def test_it_makes_no_difference_how_many_are_recorded_at_once(tmp_path: Path, whole: Whole) -> None:
    store = RunStore(tmp_path / "runs")
    two = replace(tiny_model(), batch=2)
    asked = sum(1 for _ in Unlearning(two, SPEC).ask())
    stopped(store, asked + 5, two)
    again = finished(store, replace(tiny_model(), batch=8))
    assert "going on" in again.said[0]
    assert saved(again.run.diff, tmp_path) == whole.text


def test_a_finished_run_is_taken_over(tmp_path: Path, whole: Whole) -> None:
    store, model = RunStore(tmp_path / "runs"), tiny_model()
    first = finished(store)
    before = frozen_bits(model.denoiser.module)
    run = Unlearning(model, SPEC)
    with Keeping(run, store) as kept:
        reports = list(kept)
    assert kept.recalled and kept.kept
    assert "finished before" in kept.said[0]
    assert [report.done for report in reports] == [reports[0].total]
    assert saved(run.diff, tmp_path) == whole.text
    assert (run.final, run.curves, run.neurons) == (
        first.run.final, first.run.curves, first.run.neurons,
    )  # fmt: skip
    assert frozen_bits(model.denoiser.module) == before


class Other(WordEncoder):
    """A text encoder with the same words that reads them differently."""

    def _rows(self, prompt: str) -> torch.Tensor:
        return super()._rows(prompt) * 1.001


def other_model(what: str) -> LentModel:
    """Build a model with the same q, k and v that differs elsewhere."""
    model = tiny_model()
    if what == "text encoder":
        return replace(model, encoder=Other())
    if what == "picture size":
        return replace(model, latent_size=(8, 16))
    if what == "hooks":
        return replace(model, more=lambda cond: "patched")
    if what == "schedule":
        schedule = model.denoiser.schedule
        slower = replace(schedule, alphas=schedule.alphas * 0.999)
        return replace(model, denoiser=replace(model.denoiser, schedule=slower))
    part = {"self-attention": "attn1.to_q", "output": "conv_out"}[what]
    with torch.no_grad():
        for name, weight in model.denoiser.module.named_parameters():
            if part in name:
                weight.view(-1)[0] += 1e-6
    return model


@pytest.mark.parametrize(
    "what", ["text encoder", "picture size", "hooks", "schedule", "self-attention", "output"]
)
def test_what_the_figures_depend_on_is_part_of_the_name(what: str, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    done = Unlearning(tiny_model(), SPEC)
    next(report for report in done if len(done.final) == 1)
    state = done.state
    other = Unlearning(other_model(what), SPEC)
    assert other.key != Unlearning(tiny_model(), SPEC).key == done.key
    with pytest.raises(SpecError, match="another model"):
        next(iter(Unlearning(other_model(what), SPEC, state)))
    store.keep(done.key, state)
    with Keeping(other, store) as kept:
        assert other.resume is None and not kept.said


def test_other_settings_and_another_engine_are_other_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Unlearning(tiny_model(), SPEC)
    key = run.key
    assert Unlearning(tiny_model(), tiny_spec(steps=3)).key != key
    next(report for report in run if report.stage == "recording")
    with pytest.raises(SpecError, match=r"of TRUST Unlearn 0\.0\.9, this is"):
        Unlearning(tiny_model(), SPEC).check(replace(run.state, engine="0.0.9"))
    monkeypatch.setattr("trust_engine.unlearn.provenance.engine_identity", lambda: "another")
    assert Unlearning(tiny_model(), SPEC).key != key


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have the state of a run that is in the middle of its third layer."""
    path = tmp_path_factory.mktemp("state") / "state"
    run = Unlearning(tiny_model(), SPEC)
    for _ in run:
        if len(run.final) == 2 and run._piece is not None and run._piece[1].done == 1:
            save_state(run.state, path)
            break
    return path


def damages(path: Path) -> Iterator[tuple[str, bytes]]:
    """Damage a state in every way that was thought of."""
    raw = path.read_bytes()
    for share in (0.0, 0.001, 0.5, 0.999):
        yield f"cut at {share}", raw[: int(len(raw) * share)]
    for share in (0.0001, 0.3, 0.5, 0.9999):
        flipped = bytearray(raw)
        flipped[int(len(raw) * share)] ^= 0x40
        yield f"bit at {share}", bytes(flipped)
    yield "longer", raw + b"\0"
    yield "text", b"I am no state"
    yield "pickle", b"PK\x03\x04" + raw


def edits(
    tensors: dict[str, torch.Tensor], label: dict[str, Any]
) -> Iterator[tuple[str, dict[str, torch.Tensor], Any]]:
    """Edit a state's content so that it is a sound file all the same."""
    first = next(k for k in tensors if k.startswith("told."))
    run = next(k for k in tensors if k.startswith("run.optimiser"))
    index = next(k for k, t in tensors.items() if k.startswith("indices.") and len(t) > 9)
    value = index.replace("indices.", "values.")

    def without(name: str) -> dict[str, torch.Tensor]:
        return {k: v for k, v in tensors.items() if k != name}

    for name in (first, run, index, value, "latents", "timesteps", "run.done"):
        yield f"without {name}", without(name), label
    for name, other in (
        (first, tensors[first][:3]),
        (first, torch.full_like(tensors[first], float("nan"))),
        (first, tensors[first].float()),
        (value, tensors[value] * 1000),
        (value, tensors[value][:5]),
        (value, torch.full_like(tensors[value], float("inf"))),
        (index, tensors[index] + 10_000_000),
        (index, tensors[index].long()),
        (run, tensors[run].double()),
        (run, tensors[run][:1]),
        ("run.done", torch.tensor(10**6)),
        ("latents", tensors["latents"][:1]),
    ):
        yield f"{name} {tuple(other.shape)}", {**tensors, name: other}, label
    final = label["final"]
    for name, value in (
        ("final", {k: v[:1] for k, v in final.items()}),
        ("final", {k: ["x"] * len(v) for k, v in final.items()}),
        ("final", []),
        ("passes", "many"),
        ("passes", -1),
        ("recorded", None),
        ("piece", "input_blocks.9.9"),
        ("piece", ""),
        ("piece", 3),
        ("version", 0),
        ("version", "2"),
        ("version", 99),
        ("shapes", {}),
        ("shapes", 3),
        ("neurons", {"a": 1}),
        ("parts", [1]),
        ("spec", None),
        ("finished", "yes"),
    ):
        yield f"{name}={value!r}"[:40], tensors, {**label, name: value}
    for gone in ("passes", "sha256", "final", "parts", "finished", "engine"):
        yield f"without {gone}", tensors, {k: v for k, v in label.items() if k != gone}
    yield "list", tensors, [1]
    yield "nothing", tensors, None


def test_a_damaged_state_is_one_sentence(state: Path, tmp_path: Path) -> None:
    path = tmp_path / "state"
    for what, content in damages(state):
        path.write_bytes(content)
        with pytest.raises(SpecError) as caught:
            load_state(path)
        assert str(caught.value).startswith(f"{path}: "), what
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("checksum", ["as it was", "made anew"])
def test_an_edited_state_is_one_sentence_before_any_work(
    checksum: str, state: Path, tmp_path: Path
) -> None:
    """Also when its checksum fits: then what is wrong with it is found by looking."""
    with safe_open(str(state), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        label = json.loads(file.metadata()[resume.FORMAT])
    path, model = tmp_path / "state", tiny_model()
    for what, edited, told in edits(tensors, label):
        if checksum == "made anew" and isinstance(told, dict) and "without sha256" not in what:
            digests = {k: resume._digest(t, None) for k, t in edited.items()}
            told = {**told, "sha256": resume._sha256(told, digests)}
        save_file(edited, path, {resume.FORMAT: json.dumps(told)})
        passes = 0

        def counted(*args: Any) -> Any:
            nonlocal passes
            passes += 1
            return model.denoiser.forward(*args)

        watched = replace(model, denoiser=replace(model.denoiser, forward=counted))
        try:
            run = Unlearning(watched, SPEC, load_state(path))
            next(iter(run))
        except SpecError as error:
            assert "\n" not in str(error), what
            assert passes == 0, what
        else:
            # Numbers that are possible can only be told by the checksum.
            assert checksum == "made anew", what
            assert all(o.values.isfinite().all() for o in run.results.offsets.values()), what
