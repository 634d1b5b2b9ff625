"""A real web UI started on the loopback interface, with our extension and a checkpoint in it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {
    "A1111_PATH": [
        "--use-cpu",
        "all",
        "--do-not-download-clip",
        "--disable-nan-check",
        "--no-download-sd-model",
    ],
    "FORGE_PATH": ["--always-cpu", "--no-download-sd-model"],
    "FORGE_NEO_PATH": ["--cpu"],
}
WAY = {
    "A1111_PATH": ["--no-half", "--precision", "full"],
    "FORGE_PATH": [],
    "FORGE_NEO_PATH": [],
}
COMMON = ["--skip-torch-cuda-test", "--skip-prepare-environment", "--skip-python-version-check",
          "--skip-version-check", "--api", "--server-name", "127.0.0.1"]  # fmt: skip
PROBE = """from pathlib import Path

import torch
from modules import scripts, shared
from safetensors.torch import save_file


class Probe(scripts.Script):
    def title(self):
        return "Probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def post_sample(self, p, *_):
        asked = Path({asked!r})
        if not asked.exists():
            return
        model = shared.sd_model
        part = getattr(model, "forge_objects", None)
        unet = part.unet.model if part else model.model
        with torch.inference_mode(False):
            weights = unet.diffusion_model.state_dict().items()
            save_file({{k: w.detach().cpu().clone() for k, w in weights}}, {answer!r})
        asked.unlink()
"""
"""Saves the UNet's weights as they are when a picture has been sampled, if it is asked to."""
FULL_SIZE = "WEBUI_CHECKPOINT" in os.environ
PATIENCE = 1800  # seconds that a start, or one answer, may take on a small machine


class Server:
    """A running web UI: ask it things."""

    def __init__(self, variable: str, port: int, data: Path, login: str = "") -> None:
        self.variable, self.url, self.data = variable, f"http://127.0.0.1:{port}", data
        self.login = login

    @property
    def diffs(self) -> Path:
        """Return the folder of diffs."""
        return self.data / "models" / "trust_diffs"

    @property
    def outputs(self) -> Path:
        """Return the host's folder of pictures."""
        return self.data / ("output" if self.variable == "FORGE_NEO_PATH" else "outputs")

    def ask(self, path: str, body: Any = None) -> Any:
        """GET, or POST when there is a body; returns what the JSON says, raises HTTPError."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.login:
            headers["Authorization"] = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        request = urllib.request.Request(self.url + path, content, headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def weights(self, draw: Callable[[], Any]) -> dict[str, Any]:
        """Draw, and return the UNet's weights as they were meanwhile."""
        from safetensors.torch import load

        asked, answer = probe(self.data)
        asked.touch()
        draw()
        assert not asked.exists(), "the probe has failed; the server's log says why"
        return load(answer.read_bytes())  # not mapped: the next answer goes into the same file

    def finish(self, started: dict[str, Any]) -> dict[str, Any]:
        """Wait for a job."""
        for _ in range(PATIENCE):
            told = self.ask(f"/trust/v1/jobs/{started['job']}")
            if told["state"] in ("done", "failed", "stopped"):
                return told
            time.sleep(1)
        raise AssertionError(f"the job does not end: {told}")


@contextlib.contextmanager
def running(
    variable: str,
    data: Path,
    lay_out: Callable[[Path], Any] = lambda data: None,
    way: Sequence[str] | None = None,
) -> Iterator[Server]:
    """Start the host that a variable names; its own files are not written to.

    lay_out: puts into the data folder what a user has in it before the first start; way: flags
    instead of the usual ones of WAY.
    """
    way = WAY[variable] if way is None else way
    login = way[way.index("--api-auth") + 1] if "--api-auth" in way else ""
    host = Path(os.environ[variable])
    python = os.environ.get(variable.replace("PATH", "PYTHON"), sys.executable)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _furnish(data, lay_out)
    command = [python, "launch.py", *FLAGS[variable], *way, *COMMON, "--port", str(port),
               "--data-dir", str(data)]  # fmt: skip
    if variable != "A1111_PATH":  # else it denies its page its own scripts and styles
        command += ["--gradio-allowed-path", str(host)]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "0",
               "no_proxy": "127.0.0.1,localhost", "PYTHONUNBUFFERED": "1"}  # fmt: skip
    with (data / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=host, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, **offline},
        )  # fmt: skip
        try:
            server = Server(variable, port, data, login)
            _await(server, process)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def probe(data: Path) -> tuple[Path, Path]:
    """Name the file that asks the probe, and the one that it answers with."""
    return data / "probe", data / "probe.safetensors"


def _furnish(data: Path, lay_out: Callable[[Path], Any]) -> None:
    """Lay out a data folder: our extension, a probe, and what the user has; again it is kept."""
    if data.exists():
        return
    (data / "extensions" / "probe" / "scripts").mkdir(parents=True)
    (data / "extensions" / "trust-unlearn").symlink_to(ROOT)
    asked, answer = map(str, probe(data))
    script = data / "extensions" / "probe" / "scripts" / "probe.py"
    script.write_text(PROBE.format(asked=asked, answer=answer), encoding="utf-8")
    lay_out(data)


def give_checkpoint(data: Path) -> None:
    """Put in the checkpoint that WEBUI_CHECKPOINT names."""
    models = data / "models" / "Stable-diffusion"
    models.mkdir(parents=True)
    source = Path(os.environ["WEBUI_CHECKPOINT"])
    (models / source.name).symlink_to(source)


def _await(server: Server, process: subprocess.Popen[bytes]) -> None:
    for _ in range(PATIENCE):
        if process.poll() is not None:
            break
        time.sleep(1)
        # Asked before it has added its API, AUTOMATIC1111 fails for good.
        if b"Startup time" in (server.data / "log.txt").read_bytes():
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                server.ask("/trust/v1/concepts")
                return
    text = (server.data / "log.txt").read_text("utf-8", "replace")
    raise AssertionError(f"{server.variable}: the server does not start:\n{text[-3000:]}")
