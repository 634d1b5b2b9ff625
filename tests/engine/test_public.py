"""The names at the front door, and the whole job in one call."""

from __future__ import annotations

import subprocess
import sys

import pytest

import trust_engine
from toys.tiny import frozen_bits, tiny_model
from trust_engine import ConceptSpec, StepReport, Unlearning, UnlearnSpec, forget
from trust_engine.errors import SpecError

SHORT = {"steps": 3, "passes": 16, "trajectory_steps": 2}


@pytest.mark.parametrize("name", trust_engine.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(trust_engine, name).__name__ == name


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'remember'"):
        trust_engine.remember  # noqa: B018


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, trust_engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_forget_is_a_run_from_start_to_end() -> None:
    lent = tiny_model()
    before = frozen_bits(lent.denoiser.module)
    seen: list[StepReport] = []
    diff = forget(lent, "gun", progress=seen.append, **SHORT)
    run = Unlearning(lent, UnlearnSpec((ConceptSpec(("gun",)),), **SHORT))
    assert [report.done for report in run] == [report.done for report in seen]
    assert diff.offsets.keys() == run.diff.offsets.keys()
    assert all((diff.offsets[k].values == run.diff.offsets[k].values).all() for k in diff.offsets)
    assert frozen_bits(lent.denoiser.module) == before


def test_forget_takes_several_concepts_of_any_kind() -> None:
    pair = ConceptSpec(("cat",), "combination", companion="dog")
    diff = forget(tiny_model(), "gun", pair, **SHORT)
    (gun, combination) = UnlearnSpec.from_json(diff.provenance["spec"]).concepts
    assert (gun.words, combination) == (("gun",), pair)


def test_forget_refuses_what_it_does_not_know() -> None:
    with pytest.raises(SpecError):
        forget(tiny_model(), "gun", steps=0)


def test_a_progress_that_raises_cancels() -> None:
    def stop(report: StepReport) -> None:
        raise KeyboardInterrupt

    lent = tiny_model()
    before = frozen_bits(lent.denoiser.module)
    with pytest.raises(KeyboardInterrupt):
        forget(lent, "gun", progress=stop, **SHORT)
    assert frozen_bits(lent.denoiser.module) == before
