"""The real hosts run in other ways: little memory, half precision, eight bits, a password.

Each test starts a host of its own, with the demo model.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hosts.webui_demo import choose
from hosts.webui_drawing import SHORT, first, made, read
from hosts.webui_server import ROOT, WAY, Server, running
from toys.tiny import some_diff
from trust_engine.diff import save_diff
from trust_engine.models.load import load_model

FULL = WAY["A1111_PATH"]
TRAINED = {
    "medvram": ("A1111_PATH", [*FULL, "--medvram", "--api-auth", "ann:secret"], torch.float32),
    "a1111-half": ("A1111_PATH", ["--precision", "half"], torch.float16),
    "forge-half": ("FORGE_PATH", ["--unet-in-fp16"], torch.float16),
    "forge-bf16": ("FORGE_PATH", ["--unet-in-bf16"], torch.bfloat16),
    "forge-password": ("FORGE_PATH", ["--api-auth", "ann:secret"], torch.float32),
    "neo-half": ("FORGE_NEO_PATH", ["--fp16-unet"], torch.float16),
    "neo-bf16": ("FORGE_NEO_PATH", ["--bf16-unet", "--api-auth", "ann:secret"], torch.bfloat16),
}
REFUSED = {
    "lowvram": ("A1111_PATH", [*FULL, "--lowvram"], {}, "start with --medvram"),
    "a1111-fp8": ("A1111_PATH", FULL, {"fp8_storage": "Enable"}, "switch FP8, NF4 or GGUF off"),
    "forge-fp8": ("FORGE_PATH", ["--unet-in-fp8-e4m3fn"], {}, "switch FP8, NF4 or GGUF off"),
}


RESTARTED = {variable: (variable,) for variable in WAY}


def named(ways: dict[str, Any]) -> list[Any]:
    """Mark each way with the host that it needs."""
    return [pytest.param(name, marks=pytest.mark.host(way[0])) for name, way in ways.items()]


@contextlib.contextmanager
def started(variable: str, way: list[str], folder: Path) -> Iterator[Server]:
    """Start a host in some way."""
    with running(variable, folder / "data", way=way) as server:
        choose(server)
        yield server


@pytest.mark.parametrize("way", named(TRAINED))
def test_unlearned_and_applied(way: str, tmp_path: Path) -> None:
    """The weights are of the type asked for, the diff comes off to the bit, a password guards."""
    variable, flags, kind = TRAINED[way]
    with started(variable, flags, tmp_path) as server:
        plain, _ = first(server)
        base = server.weights(lambda: first(server))
        diff = read(server, made(server, "gun"))
        assert {weight.dtype for key, weight in base.items() if key in diff.offsets} == {kind}
        under = server.weights(lambda: first(server, "gun.safetensors", 1.0))
        drawn, _ = first(server, "gun.safetensors", 1.0)
        after = server.weights(lambda: first(server))
        assert drawn != plain == first(server)[0]
        for key, weight in base.items():
            assert torch.equal(after[key], weight), key
            change = diff.offsets[key].dense() if key in diff.offsets else 0
            wanted = (weight.float() + change).to(kind)
            close = {} if kind == torch.float32 else {"rtol": 2**-7, "atol": 1e-3}
            torch.testing.assert_close(under[key], wanted, **close)
        if server.login:
            _guarded(server)


def _guarded(server: Server) -> None:
    """Without the host's password, and with a wrong one, no route answers."""
    jobs = server.ask("/trust/v1/jobs")
    right, paths = server.login, ("diffs", "concepts", "jobs", f"jobs/{jobs[0]['id']}", "apply")
    posts = ("unlearn", "audit", "expect", "apply", f"jobs/{jobs[0]['id']}/cancel")
    for server.login in ("", "ann:wrong", "bob:secret"):
        for path, body in [*((p, None) for p in paths), *((p, {}) for p in posts)]:
            with pytest.raises(urllib.error.HTTPError) as caught:
                server.ask(f"/trust/v1/{path}", body)
            assert caught.value.code == 401, path
    server.login = right
    assert server.ask("/trust/v1/jobs") == jobs


@pytest.mark.parametrize("way", named(REFUSED))
def test_refused_in_a_sentence(way: str, tmp_path: Path) -> None:
    """Unlearning is refused, nothing is changed by that, and diffs can be applied all the same."""
    variable, flags, options, said = REFUSED[way]
    with started(variable, flags, tmp_path) as server:
        if options:
            server.ask("/sdapi/v1/options", options)
        plain, _ = first(server)
        concept = {"words": ["gun"], "preserve": ["a cat"]}
        order = {"concepts": [concept], "spec": SHORT, "resolution": 64}
        told = server.finish(server.ask("/trust/v1/unlearn", order))
        assert told["state"] == "failed" and said in told["message"], told
        assert first(server)[0] == plain
        server.diffs.mkdir(exist_ok=True)
        save_diff(some_diff(load_model("demo", "cpu").denoiser), server.diffs / "any.safetensors")
        assert first(server, "any.safetensors", 1.0)[0] != plain
        assert first(server)[0] == plain


@pytest.mark.parametrize("variable", named(RESTARTED))
def test_the_demo_model_after_a_restart(variable: str, tmp_path: Path) -> None:
    """What was laid out is loaded and drawn by the next start alone, and it is there once."""
    data = tmp_path / "data"
    with running(variable, data) as server:
        choose(server)
        before, _ = first(server, seed=3)
        choose(server)
        assert len(server.ask("/sdapi/v1/sd-models")) == 1
    with running(variable, data) as server:
        (listed,) = server.ask("/sdapi/v1/sd-models")
        assert listed["model_name"] == "emoji-world"
        assert first(server, seed=3)[0] == before
        server.ask("/trust/v1/diffs")


@pytest.mark.parametrize("variable", [pytest.param(v, marks=pytest.mark.host(v)) for v in WAY])
@pytest.mark.parametrize("known", [True, False])
def test_install_is_silent(variable: str, known: bool) -> None:
    """As the host runs it at every start, and where its `launch` cannot be imported."""
    host = Path(os.environ[variable])
    python = os.environ.get(variable.replace("PATH", "PYTHON"), sys.executable)
    path = {"PYTHONPATH": str(host)} if known else {}
    ran = subprocess.run(
        [python, str(ROOT / "install.py")], cwd=host if known else ROOT, env={**os.environ, **path},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
