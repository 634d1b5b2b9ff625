"""A real ComfyUI, started headless on the loopback with our pack, and driven over its API."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
# Dashes and dots, which the host puts into our module's name; before 0.3.28 it cannot do with dots.
FOLDER = os.environ.get("COMFYUI_PACK", "trust-unlearn.v1")
# Seconds for one prompt. A laptop needs a fifth for an audit, a twentieth for all else.
PATIENCE = int(os.environ.get("TRUST_PATIENCE", "900"))


@dataclass
class Ended:
    """How a prompt ended: success, error or interrupted; its outputs, and the error's text."""

    status: str
    outputs: dict[str, dict[str, Any]]
    error: str
    cached: list[str]

    def text(self, node: str) -> str:
        """Return the text that a node showed."""
        return "\n".join(self.outputs[node]["text"])


class ComfyServer:
    """The host that COMFYUI_PATH names, run by COMFYUI_PYTHON, on a base folder of its own."""

    def __init__(self, base: Path, options: tuple[str, ...] = ()) -> None:
        self.base, self.options = base, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> ComfyServer:
        packs = self.base / "custom_nodes"
        packs.mkdir(parents=True)
        (packs / FOLDER).symlink_to(ROOT, target_is_directory=True)
        for name in ("memory", "watch"):
            (packs / f"{name}.py").symlink_to(ROOT / "tests" / "hosts" / f"comfy_{name}.py")
        command = [
            os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py", "--cpu",
            "--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.base),
            "--disable-auto-launch", *os.environ.get("COMFYUI_OPTIONS", "").split(), *self.options,
        ]  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=os.environ["COMFYUI_PATH"], stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def log(self) -> Path:
        """What the host wrote."""
        return self.base / "server.log"

    def _wait_until_up(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process is not None and self.process.poll() is None, self.log.read_text()
            try:
                self.get("/object_info/TrustUnlearn")
                return
            except OSError:
                time.sleep(0.5)
        raise TimeoutError(self.log.read_text())

    def get(self, path: str) -> Any:
        """GET a path, answered in JSON."""
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as answer:
            return json.loads(answer.read())

    def post(self, path: str, data: Any = None) -> Any:
        """POST JSON; an answer that refuses is returned, too."""
        body = json.dumps({} if data is None else data).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
        return json.loads(text) if text else None

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue a prompt and return its id."""
        answer = self.post("/prompt", {"prompt": prompt, "client_id": "test"})
        assert "prompt_id" in answer and not answer["node_errors"], answer
        return answer["prompt_id"]

    def wait(self, prompt_id: str) -> Ended:
        """Wait for a prompt's end."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return _ended(history[prompt_id])
            time.sleep(0.3)
        raise TimeoutError(self.log.read_text()[-3000:])

    def run(self, prompt: dict[str, Any]) -> Ended:
        """Queue a prompt and wait for its end."""
        return self.wait(self.queue(prompt))

    def wait_for_log(self, text: str, after: int = 0) -> None:
        """Wait until the host has logged a text, after a number of characters."""
        end = time.monotonic() + PATIENCE
        while text not in self.log.read_text()[after:]:
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def wait_for_stage(self, start: str) -> None:
        """Wait until our node has told of a stage that begins so."""
        end = time.monotonic() + PATIENCE
        while not self.get("/test/watch")["stage"].startswith(start):
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def pixels(self, ended: Ended, node: str) -> list[str]:
        """Hash the pixels of a node's pictures; the files' metadata differs from run to run."""
        return [
            hashlib.sha256(Image.open(path).convert("RGB").tobytes()).hexdigest()
            for path in self.pictures(ended, node)
        ]

    def furthest(self, ended: Ended, node: str, others: list[Path]) -> int:
        """Return how far a node's pictures are from others, in levels of 255."""
        mine = self.pictures(ended, node)
        assert len(mine) == len(others)
        pairs = (tuple(np.asarray(Image.open(path).convert("RGB"), np.int16) for path in pair)
                 for pair in zip(mine, others, strict=True))  # fmt: skip
        return max(int(np.abs(a - b).max()) for a, b in pairs)

    def pictures(self, ended: Ended, node: str) -> list[Path]:
        """Return the paths of a node's pictures."""
        return [
            self.base / told["type"] / told["subfolder"] / told["filename"]
            for told in ended.outputs[node]["images"]
        ]


def _ended(told: dict[str, Any]) -> Ended:
    status, error, cached = "success", "", []
    for kind, data in told["status"]["messages"]:
        if kind == "execution_error":
            status, error = "error", data["exception_message"]
        if kind == "execution_interrupted":
            status = "interrupted"
        if kind == "execution_cached":
            cached = data["nodes"]
    return Ended(status, told["outputs"], error.strip(), cached)


def as_prompt(workflow: dict[str, Any], server: ComfyServer) -> dict[str, Any]:
    """Turn a saved workflow into what the API takes, as the browser does; names unknown nodes."""
    links = {link[0]: link for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in ("Note", "MarkdownNote"):
            continue
        info = server.get(f"/object_info/{kind}")
        assert kind in info, f"missing node {kind}"
        inputs, values = {}, list(node.get("widgets_values", []))
        linked = {i["name"]: i["link"] for i in node["inputs"] if i["link"] is not None}
        declared = {**info[kind]["input"].get("required", {}),
                    **info[kind]["input"].get("optional", {})}  # fmt: skip
        for name, (kind_of, *more) in declared.items():
            options = more[0] if more else {}
            if isinstance(kind_of, list) or kind_of in ("INT", "FLOAT", "STRING", "BOOLEAN"):
                inputs[name] = values.pop(0)
                if options.get("control_after_generate", name in ("seed", "noise_seed")):
                    values.pop(0)
            if name in linked:
                _, source, slot, *_ = links[linked[name]]
                inputs[name] = [str(source), slot]
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt
