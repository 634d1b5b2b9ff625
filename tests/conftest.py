"""What every test gets: fixed seeds; and a reason in sight when it is skipped."""

from __future__ import annotations

import gc
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

os.environ["TRUST_RUNS"] = "off"  # no test takes over what another one, or the user, has kept
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if WORKERS > 1:  # torch's threads, several a worker, would stand in each other's way
    torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare --run-slow."""
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the slow tests unless asked for, and those whose host is not there."""
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="slow: --run-slow runs it"))
        for marker in item.iter_markers("host"):
            (variable,) = marker.args
            if not Path(os.environ.get(variable) or "missing").is_dir():
                reason = f"no host: {variable} names no folder"
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what is imported by now: it takes half a second to look at."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


WEBUIS = [
    pytest.param(variable, marks=pytest.mark.host(variable))
    for variable in ("A1111_PATH", "FORGE_PATH", "FORGE_NEO_PATH")
]


@pytest.fixture(scope="session", params=WEBUIS)
def webui(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Have each web UI running, with the demo model or WEBUI_CHECKPOINT."""
    from hosts.webui_demo import choose, write_embedding
    from hosts.webui_server import FULL_SIZE, give_checkpoint, running

    data = tmp_path_factory.mktemp("webui") / "data"
    with running(request.param, data, give_checkpoint if FULL_SIZE else write_embedding) as started:
        if not FULL_SIZE:
            choose(started)
        yield started


@pytest.fixture(scope="session", params=WEBUIS)
def webui_page(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Have each running for a browser, as a newcomer has it: without any checkpoint."""
    from hosts.webui_server import running

    with running(request.param, tmp_path_factory.mktemp("page") / "data") as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
