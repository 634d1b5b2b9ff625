"""Inputs as people have them: files with marks, names given twice, long prompts, endings."""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from toys.small_unet import small_checkpoint, small_diff
from toys.tiny import tiny_model, tiny_spec
from trust_engine import strict_json
from trust_engine.cli.inputs import CONCEPT_FLAGS, FLAGS, read_spec, say_applied, say_cut
from trust_engine.cli.main import main
from trust_engine.diff import payload_sha256, save_diff
from trust_engine.errors import DiffError, OutputError, SpecError
from trust_engine.frontend.pictures import FORMATS, encoded
from trust_engine.io.files import open_regular
from trust_engine.io.outputs import check_folder, check_suffix
from trust_engine.models.precision import in_float32
from trust_engine.models.text_encoders import part_read
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.run import Unlearning

SPEC = UnlearnSpec((ConceptSpec(("猫",)),))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_spec_in_any_utf(encoding: str) -> None:
    """PowerShell writes UTF-16 or a mark in front, Notepad a mark."""
    assert UnlearnSpec.from_json(SPEC.to_json().encode(encoding)) == SPEC
    assert UnlearnSpec.from_json("\ufeff" + SPEC.to_json()) == SPEC


@pytest.mark.parametrize(
    "text",
    [
        '{"concept": {"words": ["gun"]}, "steps": 3, "steps": 4}',
        '{"concept": {"words": ["gun"], "words": ["cat"]}}',
    ],
)
def test_a_name_given_twice_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is given twice"):
        UnlearnSpec.from_json(text)
    with pytest.raises(ValueError, match="is given twice"):
        strict_json.parse(text.encode())


class Words:
    """An encoder that counts words as tokens."""

    def count_tokens(self, prompt: str) -> int:
        return len(prompt.split())


def test_prompts_that_are_cut_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    encoder: Any = Words()
    long = " ".join(f"w{i}" for i in range(80))
    assert part_read(encoder, "a b") is None
    assert part_read(encoder, " ".join(["x"] * 75)) is None
    assert part_read(encoder, long) == " ".join(f"w{i}" for i in range(75))
    say_cut(encoder, ["a b", long, long])
    said = capsys.readouterr().err
    assert "leaves out 'w75 w76 w77 w78 w79', and 1 more prompts are cut" in said
    say_cut(encoder, ["a b"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("ending", [*FORMATS, "", ".unknown"])
def test_a_picture_is_what_its_ending_says(ending: str) -> None:
    content = encoded(Image.new("RGB", (8, 8)), ending.upper())
    assert Image.open(io.BytesIO(content)).format == FORMATS.get(ending, "PNG")


@pytest.mark.parametrize("name", ["x.gif", "x.json", "x.safetensors", "x.TIFF", "x.pdf"])
def test_an_ending_that_says_something_else_is_refused(name: str) -> None:
    with pytest.raises(OutputError, match=r"let its name end in \.png or"):
        check_suffix(Path(name), *FORMATS)


def test_endings_that_say_nothing_are_free() -> None:
    for name in ("x", "gun.v2", "x.safetensors", None):
        check_suffix(name and Path(name), ".safetensors")  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="will be a folder"):
        check_folder(Path("x.safetensors"), {})


@pytest.mark.parametrize(
    "line",
    [
        "generate --model m --prompt x --out x.gif",
        "unlearn --model m --concept gun --out x.png",
        "audit --model m --diff d --concept gun --json x.html",
        "audit --model m --diff d --concept gun --html x.json",
        "diff merge d --out x.ckpt",
        "diff apply d --model m --out x.ckpt",
        "diff export d --format dense --out x.pt",
        "diff export d --format unet-pt --model m --out x.safetensors",
        "diff annotate d --notes x --out x.json",
    ],
)
def test_every_command_goes_by_the_ending(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_diff(small_diff(), Path("d"))
    small_checkpoint(Path("m"))
    assert main(line.split()) == 2
    assert "let its name end in" in capsys.readouterr().err


def applied() -> dict[str, Any]:
    diff = small_diff()
    return {"sha256": payload_sha256(diff), "strength": 1.0, "spec": diff.provenance["spec"]}


def test_unlearning_says_what_is_in_the_model_already(capsys: pytest.CaptureFixture[str]) -> None:
    say_applied("m", [applied(), {**applied(), "strength": -0.5}])
    assert "m has gun x0.5 in it already" in capsys.readouterr().err
    say_applied("m", [])
    assert capsys.readouterr().err == ""


def test_the_new_diff_keeps_what_was_in_the_model() -> None:
    from dataclasses import replace

    spec = tiny_spec()
    runs = []
    for inside in ((), (applied(),)):
        run = Unlearning(replace(tiny_model(), applied=inside), spec)
        assert list(run)
        runs.append(run.diff.provenance)
    assert "applied" not in runs[0]
    assert runs[1]["applied"] == [applied()]
    assert json.dumps(runs[1])


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_another_default_type_gives_the_same_diff(default: torch.dtype) -> None:
    found = []
    for chosen in (torch.float32, default):
        model = tiny_model()
        torch.set_default_dtype(chosen)
        try:
            run = Unlearning(model, tiny_spec())
            for _ in run:
                assert torch.get_default_dtype() == chosen
            found.append(payload_sha256(run.diff))
        finally:
            torch.set_default_dtype(torch.float32)
    assert found[0] == found[1]


def test_the_default_type_comes_back_after_an_error() -> None:
    @in_float32
    def work() -> Any:
        yield torch.get_default_dtype()
        raise ValueError

    torch.set_default_dtype(torch.float64)
    try:
        steps = work()
        assert next(steps) == torch.float32
        with pytest.raises(ValueError):
            next(steps)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_diff_that_is_in_the_model_is_not_drawn_twice() -> None:
    from trust_engine.diff.base_model import refuse_again

    with pytest.raises(DiffError, match="is in the model already, at strength 1"):
        refuse_again({"diffs": [applied()]}, small_diff(), 0.5, "d", "the model")
    assert refuse_again({"diffs": [applied()]}, small_diff(), -1.0, "d", "the model")
    assert not refuse_again({"diffs": [applied()]}, small_diff(1), 1.0, "d", "the model")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"concept": {"words": ["g\u00fcn"]}}'.encode("latin-1"), "no text in UTF-8 or UTF-16"),
        (b"\xb0\x00\x00\x00", "is not JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"concept": {"words": [""]}}', "concept is empty"),
    ],
)
def test_a_spec_that_cannot_be_read_is_named(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    args = argparse.Namespace(spec=path, **dict.fromkeys((*CONCEPT_FLAGS, *FLAGS)))
    with pytest.raises(SpecError, match=rf"mine\.json: .*{told}"):
        read_spec(args)


def test_what_is_no_file_is_not_said_to_be_missing(tmp_path: Path) -> None:
    for path, told in (
        (tmp_path, "is a folder, not a file"),
        (Path(os.devnull), "is no regular file"),
        (tmp_path / "none", "no such file"),
    ):
        with pytest.raises(SpecError, match=told), open_regular(path, SpecError):
            pass


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--model", "demo", "--out", "x.png", "--prompt", "a \udcff cat"],
        ["audit", "--model", "demo", "--diff", "d", "--concept", "gun\udcff"],
        ["audit", "--model", "demo", "--diff", "d", "--concept", "gun", "--retain", "\ud800"],
    ],
)
def test_bytes_that_are_no_text_are_refused(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    assert "is no text in this terminal's encoding; write it in UTF-8" in capsys.readouterr().err


def test_bytes_that_are_no_text_are_no_part_of_a_concept() -> None:
    assert ConceptSpec(("gun\udcff",), preserve=("\ud800 cat",)) == ConceptSpec(
        ("gun",), preserve=("cat",)
    )
