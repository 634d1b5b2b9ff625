"""A web UI lends its model, for tests: both pretended hosts, and one with ldm's own UNet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.webui import installed
from fakes.webui_a1111 import FakeA1111
from fakes.webui_forge import FakeForge
from fakes.webui_neo import FakeNeo
from trust_engine.spec import ConceptSpec, UnlearnSpec

FEW = ("a picture of {}", "{} on a blue background")  # templates: each prompt is encoded alone
GUN = ConceptSpec(("gun",), preserve=("a cat",), templates=FEW)
SHORT = {"steps": 2, "trajectory_steps": 2, "passes": 12}
HOSTS = ("a1111", "a1111-ldm", "neo", "forge")


def make(kind: str) -> Any:
    """Make a pretended host."""
    if kind == "a1111-ldm":
        pytest.importorskip("ldm", reason="no ldm: tools/env.py installs stable-diffusion-sdkit")
    if kind in ("forge", "neo"):
        return FakeNeo() if kind == "neo" else FakeForge()
    return FakeA1111(ldm=kind == "a1111-ldm")


def entered(kind: str, folder: Path) -> Iterator[Any]:
    """Enter a pretended host."""
    made = make(kind)
    with installed(folder, made.modules) as shared:
        made.shared, made.folder = shared, folder
        yield made


def run_job(order: Any) -> Any:
    """Run an unlearning job here and now."""
    from trust_webui.jobs import Job, run
    from trust_webui.unlearn_job import unlearn

    job = Job("unlearn", order.spec.name)
    run(job, unlearn(order))
    return job


def small(concept: ConceptSpec = GUN, pictures: int = 0, **changes: Any) -> Any:
    """Order a run at half the demo's side: what is proved of a job holds at any size."""
    from trust_webui.unlearn_job import Order

    return Order(spec(concept, **changes), resolution=64, pictures=pictures)


def spec(concept: ConceptSpec = GUN, **changes: Any) -> UnlearnSpec:
    """Ask for a run of seconds."""
    return UnlearnSpec((concept,), **{**SHORT, **changes})
