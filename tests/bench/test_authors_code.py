"""Our ESD, UCE and SalUn beside their authors' code: one model, one input, both run.

    ESD_PATH=... UCE_PATH=... SALUN_PATH=... pytest -n0 -s tests/bench/test_authors_code.py

Each path names a checkout of the authors' repository; docs/results/methods.md has their commits
and the figures. What the authors drew by chance is read from their run and handed to ours.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from bench.baselines import closed_form, esd, salun
from bench.baselines.common import Task, Weights
from toys.authors_code import Pictures, Salun, run_esd, run_uce
from trust_engine.models.load import LoadedModel, load_model
from trust_engine.models.overrides import weights_of
from trust_engine.prompts.concept import PromptSet
from trust_engine.spec import ConceptSpec

GUN = ConceptSpec(("gun",))


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("demo", "cpu")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the authors' scripts leave their files in a folder of the test's."""
    monkeypatch.chdir(tmp_path)


@dataclass(frozen=True)
class Given(Task):
    """A task whose prompts, pictures and chance are given, in the order they are asked for."""

    written: PromptSet = field(default_factory=lambda: PromptSet((), (), (), ()))
    drawn: list[tuple[Tensor, list[int]]] = field(default_factory=list)
    picks: list[Tensor] = field(default_factory=list)
    noises: list[Tensor] = field(default_factory=list)

    @property
    def prompts(self) -> PromptSet:  # type: ignore[override]
        return self.written

    def draw(self, *_: Any) -> tuple[Tensor, list[int]]:
        return self.drawn.pop(0)

    def pick(self, *_: Any) -> Tensor:
        return self.picks.pop(0)

    def noise(self, _: int) -> Tensor:
        return self.noises.pop(0)


@dataclass(frozen=True)
class Step:
    """A baseline's first training step: its loss, gradients by parameter name, and mask."""

    loss: float
    gradients: Weights
    masks: Mapping[str, Tensor] | None


def first_step(patch: pytest.MonkeyPatch, module: Any, run: Callable[[], Any], task: Given) -> Step:
    """Run a baseline up to its training, and take the first step's gradient there."""
    caught: list[Any] = []

    def train(
        _: Task, start: Weights, loss: Any, _steps: int, _rate: float, masks: Any = None
    ) -> Weights:
        caught.append((start, loss, masks))
        return {}

    patch.setattr(module, "train", train)
    run()
    ((start, loss, masks),) = caught
    theta = {name: w.requires_grad_() for name, w in start.items()}
    with torch.enable_grad():
        value = loss(task.model.with_weights(theta), 0)
        found = torch.autograd.grad(value, list(theta.values()), allow_unused=True)
    assert not task.picks and not task.noises  # all that was given has been asked for
    named = zip(theta, found, strict=True)
    return Step(value.item(), {n: g for n, g in named if g is not None}, masks)


def apart(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return the cosine of two sets of tensors and their relative distance."""
    assert ours.keys() == theirs.keys()
    a, b = (torch.cat([x[n].double().flatten() for n in sorted(ours)]) for x in (ours, theirs))
    return float(a @ b / a.norm() / b.norm()), float((a - b).norm() / b.norm())


def report(text: str) -> None:
    sys.stdout.write(f"\n{text}\n")


@pytest.mark.host("UCE_PATH")
def test_uce_edits_keys_and_values_as_its_authors_do(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    erase, guides, keep = ("gun", "a picture of a gun"), ("", "a picture"), ("cat", "a red car")
    folder, scales = Path(os.environ["UCE_PATH"]), (1.3, 0.7, 0.4)
    concepts = (list(erase), list(guides), list(keep))
    theirs = run_uce(monkeypatch, folder, model, tmp_path, concepts, scales)
    task = Given(model, GUN, written=PromptSet(erase, guides, (1.0, 1.0), keep))
    ours, before = closed_form.uce(task, closed_form.Settings(*scales)), weights_of(model.denoiser)
    _, weights = apart(ours, theirs)
    cosine, edits = apart(*({n: w[n] - before[n] for n in theirs} for w in (ours, theirs)))
    report(
        f"UCE: {len(ours)} matrices, the same; they differ by {weights:.1e}, what was added to "
        f"them by {edits:.1e}, cosine {cosine:.7f}"
    )
    assert weights < 1e-4 and edits < 1e-3  # theirs inverts in float32, ours solves in float64


@pytest.mark.host("ESD_PATH")
@pytest.mark.parametrize("chance", [0, 1, 2])
@pytest.mark.parametrize("variant", ["x", "u"])
def test_esd_takes_its_authors_step(
    model: LoadedModel,
    variant: Literal["x", "u"],
    chance: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random.seed(chance)
    # Their target is e_p - 2 (e_p - e_0), ours e_0 - 1 (e_p - e_0): the same, one apart in name.
    flags = {"erase_concept": "a gun", "train_method": f"esd-{variant}", "iterations": 1}
    flags |= {"num_inference_steps": 20, "negative_guidance": 2, "guidance_scale": 3}
    told = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    theirs = run_esd(monkeypatch, Path(os.environ["ESD_PATH"]), model, tmp_path, told)

    noise = torch.Generator().manual_seed(theirs["seed"])
    picks = [torch.tensor([0]), torch.tensor([theirs["run_till_timestep"]])]
    task = Given(
        model,
        GUN,
        written=PromptSet(("a gun",), ("",), (1.0,), ("a cat",)),
        picks=picks,
        noises=[torch.randn(1, 4, *model.latent_size, generator=noise)],
    )
    settings = esd.Settings(batch=1, eta=1.0, guidance=3.0, sampler_steps=20)
    states: list[tuple[Tensor, Tensor]] = []
    walk = esd.denoise_to
    monkeypatch.setattr(esd, "denoise_to", lambda *a: states.append(walk(*a)) or states[-1])
    step = first_step(monkeypatch, esd, lambda: esd.erase(task, variant, settings), task)

    (x, t), names = states[0], theirs["esd_param_names"]
    assert int(t) == int(theirs["run_till_timestep_scheduler"])
    _, state = apart({"x": x}, {"x": theirs["xt"]})
    trained = {n: p.grad for n, p in zip(names, theirs["esd_params"], strict=True)}
    cosine, gradient = apart(step.gradients, trained)
    loss = abs(step.loss / theirs["losses"][0] - 1)
    report(
        f"ESD-{variant} at t = {int(t)}: {len(trained)} tensors, the same; x_t differs by "
        f"{state:.1e}, loss by {loss:.1e}, gradient by {gradient:.1e}, cosine {cosine:.7f}"
    )
    assert max(state, loss, gradient) < 1e-4


@pytest.mark.host("SALUN_PATH")
def test_salun_marks_and_learns_as_its_authors_do(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, others = "a gun", ("a cat", "a red car")
    source = Task(model, GUN)
    gone, _ = source.draw([told], 8)
    kept, kept_of = source.draw(others, 8)
    labels = torch.tensor(kept_of) + 1
    pictures = Pictures((gone, torch.zeros_like(labels)), (kept, labels), [told, *others])
    theirs = Salun(monkeypatch, Path(os.environ["SALUN_PATH"]), model, pictures)
    mask = theirs.mask(7.5, 4)
    loss, gradients = theirs.step(0.5, 8)
    marked, (stay, forget, pseudo) = theirs.seen[:2], theirs.seen[2:]
    assert torch.equal(forget[2], pseudo[2])

    picks: list[Tensor] = []
    for start, (_, t, _noise) in zip((0, 4), marked, strict=True):
        picks += [torch.arange(start, start + 4), t]
    every, first = torch.arange(8), torch.zeros(8, dtype=torch.long)  # they relabel as one other
    picks += [every, forget[1], first, every, stay[1]]
    task = Given(
        model,
        GUN,
        written=PromptSet((told,), ("",), (1.0,), others),
        drawn=[(gone, [0] * 8), (kept, kept_of)],
        picks=picks,
        noises=[noise for _, _, noise in (*marked, forget, stay)],
    )
    settings = salun.Settings(images=8, batch=4, share=0.5, keep=0.5, guidance=7.5)
    step = first_step(monkeypatch, salun, lambda: salun.erase(task, settings), task)
    assert step.masks is not None
    equal = sum(int((step.masks[n] == mask[n]).sum()) for n in mask)
    share = equal / sum(m.numel() for m in mask.values())
    masked = {n: g * mask[n] for n, g in step.gradients.items()}
    cosine, gradient = apart(masked, gradients)
    off = abs(step.loss / loss - 1)
    report(
        f"SalUn: {share:.6%} of the mask's entries are the same; loss differs by {off:.1e}, "
        f"gradient by {gradient:.1e}, cosine {cosine:.7f}"
    )
    assert share > 0.9999 and max(off, gradient) < 1e-4
