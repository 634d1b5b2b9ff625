"""Our patch in the real host's code for dynamic VRAM: rebuilt in flight, added, rounded, taken off.

The memory of the GPU has a stand-in; all else is the host's (see comfy_contract.py).
"""

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
# What is lost of a change of 0.1, 0.01 and 0.001 in weights of about 0.06, as the docs say it.
MOST_LOST = {
    "float32": (1e-6, 1e-5, 1e-4),
    "float16": (0.001, 0.005, 0.04),
    "bfloat16": (0.005, 0.04, 0.3),
    "float8_e4m3fn": (0.1, 1.0, 10.0),
}


def told(folder: Path, **spec: Any) -> dict[str, Any]:
    """Run comfy_contract.py in the host's interpreter."""
    python, out = os.environ.get("COMFYUI_PYTHON", sys.executable), folder / "told.json"
    script = ROOT / "tests" / "hosts" / "comfy_contract.py"
    command = [python, str(script), os.environ["COMFYUI_PATH"], str(ROOT), json.dumps(spec)]
    done = subprocess.run([*command, str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text("utf-8"))
    if "absent" in found:
        pytest.skip("this host has no dynamic VRAM")
    return found


@pytest.mark.parametrize("dtype", list(MOST_LOST))
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "offloaded"])
def test_what_rounding_loses(tmp_path: Path, dtype: str, resident: bool) -> None:
    found = told(tmp_path, what="lost", dtype=dtype, resident=resident)
    for here, most in zip(found.values(), MOST_LOST[dtype], strict=True):
        assert here["nearest"], "the sum is the nearest number of the compute type"
        assert here["error"] < most
        assert abs(here["mean"] - 1) < 0.05 or dtype == "float8_e4m3fn"
        assert here["others"] == 0 or dtype == "float8_e4m3fn", "what is not in the diff stays"


@pytest.mark.parametrize(
    ("dtype", "resident"), [("float32", True), ("float16", False), ("bfloat16", True)]
)
@pytest.mark.parametrize("rank", [0, 2], ids=["sparse", "low rank"])
def test_draws_and_unlearns(tmp_path: Path, dtype: str, resident: bool, rank: int) -> None:
    """The whole UNet under a diff; a run with a private copy; then the untouched model again."""
    found = told(tmp_path, what="drawn", dtype=dtype, resident=resident, rank=rank)
    assert found["patched"], "the host has put our patch where it casts the layer"
    assert found["moved"] > 0.1
    nearly = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}[dtype]
    assert found["apart"] < found["moved"] * nearly, "dynamic or classic, the diff is the same"
    assert found["back"] == 0 and found["restored"]
    assert found["report"].startswith("gun: ")
