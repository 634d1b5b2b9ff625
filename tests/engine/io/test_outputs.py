"""No output is an input, whatever the command and however its path is spelled."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from toys.small_unet import small_checkpoint, small_diff
from trust_engine.cli.main import main
from trust_engine.diff import save_diff
from trust_engine.errors import OutputError
from trust_engine.io import outputs
from trust_engine.io.outputs import check_folder, check_outputs, check_suffix
from trust_engine.spec import ConceptSpec, UnlearnSpec

posix = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
MODEL = ["--model", "model.safetensors"]
GENERATE = ["generate", *MODEL, "--prompt", "x", "--diff", "a.safetensors:0.5", "--out"]
UNLEARN = ["unlearn", *MODEL, "--spec", "spec.json", "--out"]
AUDIT = ["audit", *MODEL, "--diff", "a.safetensors", "--concept", "gun"]
DIFF = [
    ["apply", "a.safetensors", *MODEL],
    ["merge", "b.safetensors", "a.safetensors:-1"],
    ["export", "a.safetensors", "--format", "dense"],
    ["export", "a.safetensors", *MODEL, "--format", "unet-pt"],
    ["annotate", "a.safetensors", "--notes", "x"],
]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_diff(small_diff(), Path("a.safetensors"))
    save_diff(small_diff(1), Path("b.safetensors"))
    small_checkpoint(Path("model.safetensors"))
    Path("spec.json").write_text(UnlearnSpec((ConceptSpec(("gun",)),)).to_json())
    Path("audit.json").write_text("{}")


def left() -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in Path().rglob("*")}


def refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    before = left()
    assert main(line) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert left() == before
    return said


@pytest.mark.parametrize(
    "line",
    [
        [*GENERATE, "a.safetensors"],
        [*GENERATE, "model.safetensors"],
        [*UNLEARN, "spec.json"],
        [*UNLEARN, "x", "--state", "model.safetensors"],
        [*UNLEARN, "x", "--state", "spec.json"],
        [*AUDIT, "--json", "a.safetensors"],
        [*AUDIT, "--html", "model.safetensors"],
        *(["diff", *line, "--out", "a.safetensors"] for line in DIFF),
        *(["diff", *line, "--out", "model.safetensors"] for line in DIFF if MODEL[1] in line),
        ["diff", "annotate", "a.safetensors", "--audit", "audit.json", "--out", "audit.json"],
    ],
)
def test_an_input_is_no_output(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "itself, or in it; choose another name" in refused(line, capsys)


@posix
@pytest.mark.parametrize("link", ["hard", "soft", "folder", "dots"])
@pytest.mark.parametrize("line", [GENERATE, *(["diff", *line, "--out"] for line in DIFF)])
def test_however_the_path_is_spelled(
    line: list[str], link: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = "other"
    if link == "hard":
        os.link("a.safetensors", out)
    elif link == "soft":
        Path(out).symlink_to("a.safetensors")
    elif link == "folder":
        Path("linked").symlink_to(".")
        out = "linked/a.safetensors"
    else:
        out = f"../{Path.cwd().name}/./a.safetensors"
    assert "itself" in refused([*line, out], capsys)


@pytest.mark.parametrize("name", ["f/out", "f/unet/out", "f/new/folder/out", "f"])
def test_nothing_is_written_into_a_models_folder(name: str) -> None:
    Path("f/unet").mkdir(parents=True)
    for check in (lambda: check_outputs([Path(name)], {"the model": "f"}),
                  lambda: check_folder(Path(name), {"the model": "f"})):  # fmt: skip
        with pytest.raises(OutputError, match=r"in it|already"):
            check()
    assert sorted(os.listdir("f")) == ["unet"]


def test_a_file_elsewhere_may_be_replaced_though_a_model_is_a_folder() -> None:
    Path("f/unet").mkdir(parents=True)
    check_outputs([Path("b.safetensors"), Path("new")], {"the model": "f"})


@posix
def test_nor_over_what_a_models_folder_links_to() -> None:
    Path("f/unet").mkdir(parents=True)
    shutil.move("model.safetensors", "blob")
    Path("f/unet/diffusion_pytorch_model.safetensors").symlink_to("../../blob")
    with pytest.raises(OutputError, match="the model itself, or in it"):
        check_outputs([Path("blob")], {"the model": "f"})
    Path("elsewhere").symlink_to("f/new")  # leads into the folder, to a file that is not there yet
    with pytest.raises(OutputError, match="the model itself, or in it"):
        check_outputs([Path("elsewhere")], {"the model": "f"})


def test_the_demo_model_is_protected_by_its_name() -> None:
    with pytest.raises(OutputError, match="the model itself, or in it"):
        check_outputs([outputs.DEMO / "emoji-world.safetensors"], {"the model": "demo"})


def test_a_case_insensitive_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a system finds one file under both names; here a hard link stands for that."""
    os.link("a.safetensors", "A.SAFETENSORS")
    with pytest.raises(OutputError, match="the diff itself"):
        check_outputs([Path("A.SAFETENSORS")], {"the diff": "a.safetensors"})


def test_a_file_system_that_numbers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat
    zero = lambda *a, **k: os.stat_result((0o100644, 0, 1, *real(*a, **k)[3:]))  # noqa: E731
    monkeypatch.setattr(outputs.os, "stat", zero)
    assert not outputs.same(Path("a.safetensors"), Path("b.safetensors"))
    assert outputs.same(Path("a.safetensors"), Path("./a.safetensors"))


def test_a_name_may_say_no_other_format_than_the_files() -> None:
    for fine in (None, Path("x"), Path("x.v2"), Path("x.PNG"), Path("x.jpg")):
        check_suffix(fine, ".png", ".jpg")
    with pytest.raises(OutputError, match=r"would hold no json; let its name end in .png or .jpg"):
        check_suffix(Path("x.JSON"), ".png", ".jpg")


def test_a_new_folder_is_new_and_has_a_folders_name() -> None:
    check_folder(Path("new"), {"the diff": "a.safetensors"})
    assert not Path("new").exists()
    Path("there").mkdir()
    for name, told in (
        ("there", "is there already"),
        ("a.safetensors", "is there already"),
        ("new.PNG", "choose a name that is no file's"),
    ):
        with pytest.raises(OutputError, match=told):
            check_folder(Path(name), {})


def test_two_results_need_two_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert "two results" in refused([*UNLEARN, "x", "--state", "./x"], capsys)
    assert "two results" in refused([*AUDIT, "--json", "new/x", "--html", "new/x"], capsys)


def test_a_refused_command_leaves_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    refused(["diff", "apply", "missing", *MODEL, "--out", "new/er/x"], capsys)
    refused(["diff", "merge", "missing", "--out", "new/er/x"], capsys)
    line = ["diff", "export", "a.safetensors", "--format", "unet-folder"]
    refused([*line, "--model", "spec.json", "--out", "new/er/x"], capsys)
    refused([*GENERATE[:-1], "--diff", "missing", "--out", "new/x"], capsys)
