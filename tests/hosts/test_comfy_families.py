"""Small models of the real host's own classes: every family, storage, a LoRA, both engines."""

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


def told(folder: Path, **spec: Any) -> dict[str, Any]:
    """Run comfy_families.py in the host's interpreter."""
    python, out = os.environ.get("COMFYUI_PYTHON", sys.executable), folder / "told.json"
    script = ROOT / "tests" / "hosts" / "comfy_families.py"
    spec = {"dtype": "float32", "engine": "local", **spec}
    command = [python, str(script), os.environ["COMFYUI_PATH"], str(ROOT), json.dumps(spec)]
    done = subprocess.run([*command, str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text("utf-8"))


@pytest.mark.parametrize(
    ("family", "prediction", "more"),
    [
        ("sd1", "eps", {"lora": True}),
        ("sd1", "eps", {"lora": True, "lowvram": True}),
        ("sd1", "eps", {"dtype": "float16"}),
        ("sd1", "eps", {"dtype": "float8_e4m3fn"}),
        ("sd2-v", "v", {"dtype": "bfloat16"}),
        ("sdxl", "eps", {}),
        ("sdxl", "eps", {"engine": "global"}),
        ("sd1", "eps", {"robust": True, "lora": True, "lowvram": True}),
        ("sdxl", "eps", {"robust": True, "dtype": "bfloat16"}),
        ("sd1", "eps", {"robust": True, "dtype": "float16", "computes": "float16"}),
        ("sdxl", "eps", {"robust": True, "dtype": "bfloat16", "computes": "bfloat16"}),
        ("sdxl-v", "v", {}),
    ],
    ids=str,
)
def test_family(tmp_path: Path, family: str, prediction: str, more: dict) -> None:
    found = told(tmp_path, family=family, **more)
    assert found["prediction"] == prediction
    assert found["parity"] < 2e-3, "the host's x0 turned back into what its UNet says"
    assert found["changed"] > 0 and found["moved"] > 0
    assert found["apart"] <= found["moved"] * 1e-3, "lowvram or not, the diff is the same"
    assert (found["patches"] > 0) == more.get("lowvram", False)
    assert found["restored"] and found["base"]


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("flux", "this model (Flux) has no cross-attention UNet; TRUST Unlearn works with SD 1.x"),
        ("sd3", "this model (SD3) has no cross-attention UNet; TRUST Unlearn works with SD 1.x"),
        ("inpainting", "this is an inpainting, edit or unCLIP model (BaseModel, 9 input channels)"),
    ],
)
def test_refused_in_a_sentence(tmp_path: Path, family: str, text: str) -> None:
    assert told(tmp_path, family=family)["refused"].startswith(text)


def test_attacks_learn_tokens_of_both_of_sdxls_towers(tmp_path: Path) -> None:
    found = told(tmp_path, family="sdxl", towers=True)
    assert found["context"] < 1e-4 and found["vector"] < 1e-4, "as CLIPTextEncode encodes"
    assert found["slope"] > 0 and found["text"] == "a gun on red"
    assert any("inversion" in name for name in found["attacks"]), found
    assert "not possible with this text encoder" not in found["not_covered"]
