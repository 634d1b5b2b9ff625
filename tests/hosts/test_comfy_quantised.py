"""Quantised models of the real host: eight bits are unlearned with a note, four are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hosts.comfy_server import ROOT

pytestmark = pytest.mark.host("COMFYUI_PATH")


def told(folder: Path, how: str, family: str = "sdxl", engine: str = "local") -> dict[str, Any]:
    """Run comfy_quantised.py in the host's interpreter."""
    python, out = os.environ.get("COMFYUI_PYTHON", sys.executable), folder / "told.json"
    script = ROOT / "tests" / "hosts" / "comfy_quantised.py"
    spec = json.dumps({"how": how, "family": family, "engine": engine})
    command = [python, str(script), os.environ["COMFYUI_PATH"], str(ROOT), spec, str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text("utf-8"))
    if "absent" in found:
        pytest.skip(f"this host knows no {how}")
    return found


@pytest.mark.parametrize(
    ("how", "more"),
    [
        ("float8_e4m3fn", {}),
        ("float8_e4m3fn", {"family": "sd1", "engine": "global"}),
        ("int8_tensorwise", {}),
    ],
    ids=str,
)
def test_eight_bits_are_unlearned(tmp_path: Path, how: str, more: dict) -> None:
    found = told(tmp_path, how, **more)
    assert found["shapes"] and found["read"] < 0.05, "read as numbers, under the model's names"
    assert found["restored"]
    assert 0.8 < found["moved"] < 1.2 and found["along"] > 0.9, "it draws what the diff asks for"
    assert 0.9 < found["held"] < 1.1
    assert "this model is quantised (" in found["report"], "and what is lost is said"


def test_four_bits_are_refused(tmp_path: Path) -> None:
    found = told(tmp_path, "nvfp4")
    assert found["refused"] == (
        "this model is quantised (NVFP4): its steps are larger than what unlearning changes; load "
        "the model's fp16 or bf16 file instead"
    )
