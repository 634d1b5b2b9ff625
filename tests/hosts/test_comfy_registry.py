"""What the registry of ComfyUI's node packs reads of pyproject.toml."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARSE = """
import json, sys
host, root = sys.argv[1:]
sys.path.insert(0, host)
from comfy_config.config_parser import extract_node_configuration
told = extract_node_configuration(root)
print(json.dumps([told.project.model_dump(), told.tool_comfy.model_dump()]))
"""


@pytest.fixture
def told() -> dict[str, Any]:
    """Read the file."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_what_it_asks_for_is_there(told: dict[str, Any]) -> None:
    """Publisher, icon and repository are for whoever publishes to fill in."""
    project, comfy = told["project"], told["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", project["name"])
    assert "comfyui" not in project["name"] and len(project["name"]) < 100
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["license"] and project["description"] and project["requires-python"]
    assert not any(one.startswith("torch") for one in project["dependencies"])
    assert comfy["DisplayName"] and {"PublisherId", "Icon"} <= set(comfy)
    assert "web" not in comfy, "WEB_DIRECTORY names the folder"


def test_the_oldest_version_is_the_one_that_was_tested(told: dict[str, Any]) -> None:
    oldest = told["tool"]["comfy"]["requires-comfyui"].removeprefix(">=")
    page = Path("docs/start/comfyui.md")
    text = (ROOT / page).read_text("utf-8")
    (row,) = [line for line in text.splitlines() if "the oldest that is supported" in line]
    assert row.startswith(f"| {oldest} (")
    tested = re.findall(r"^\| (\d+\.\d+\.\d+) \(", text, re.MULTILINE)
    assert oldest == min(tested, key=lambda v: [int(part) for part in v.split(".")])
    assert f"({page.as_posix()})" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.host("COMFYUI_PATH")
def test_the_hosts_own_parser_reads_it(told: dict[str, Any]) -> None:
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, "-c", PARSE, os.environ["COMFYUI_PATH"], str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    project, comfy = json.loads(done.stdout.splitlines()[-1])
    for name in ("name", "version", "description", "dependencies"):
        assert project[name] == told["project"][name]
    assert project["license"]["text"] == told["project"]["license"]
    assert comfy["display_name"] == told["tool"]["comfy"]["DisplayName"] and comfy["web"] is None
