"""`audit` on the command line: what it writes, and what it refuses before a model is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import trust_engine.audit
import trust_engine.cli.progress
import trust_engine.models.load
from toys.audit_toy import LEVEL, forgets_the_word, toy_model
from trust_engine.cli.main import main
from trust_engine.diff import save_diff

AUDIT = ["audit", "--model", "m", "--diff", "d.safetensors", "--concept", "gun"]


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_diff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = toy_model()
    save_diff(forgets_the_word(model)[0][0], Path("d.safetensors"))
    monkeypatch.setattr(trust_engine.models.load, "load_model", lambda *_: model)
    monkeypatch.setattr(trust_engine.audit, "pick_level", lambda _: LEVEL)


def test_writes_figures_page_and_state(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--images", "1", "--steps", "2", "--json", "a.json", "--html", "a.html"]
    assert main([*AUDIT, *flags, "--state", "cells"]) == 0
    data = json.loads(Path("a.json").read_text())
    assert (data["concept"], data["version"], data["judge"]["name"]) == ("gun", 2, "demo")
    assert data["sampler"]["steps"] == 2
    assert data["untouched"]["ua"]["n"] == data["ua"]["n"] == 12
    page = Path("a.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "<img" in page and "loading=lazy" not in page  # or it would be printed without them
    assert len(list(Path("cells").glob("core-*.json"))) == 1
    assert "Not covered:" in " ".join(capsys.readouterr().out.split())
    first = Path("a.json").read_bytes()
    assert main([*AUDIT, *flags, "--state", "cells"]) == 0
    assert Path("a.json").read_bytes() == first  # seconds are those of the cells' making


def test_a_diff_for_another_base_is_warned_of_or_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    diff = forgets_the_word(toy_model())[0][0]
    save_diff(replace(diff, provenance={"base": "another"}), Path("other.safetensors"))
    other = ["audit", "--model", "m", "--diff", "other.safetensors", "--concept", "gun"]
    assert main([*other, "--strict"]) == 2
    assert "made for another model" in capsys.readouterr().err
    assert main([*other, "--images", "1", "--steps", "2"]) == 0
    assert "warning: other.safetensors: made for another model" in capsys.readouterr().err


def test_generate_refuses_a_diff_for_another_base_when_told_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    diff = forgets_the_word(toy_model())[0][0]
    save_diff(replace(diff, provenance={"base": "another"}), Path("other.safetensors"))
    draw = ["generate", "--model", "m", "--diff", "other.safetensors", "--prompt", "a gun"]
    assert main([*draw, "--out", "a.png", "--strict"]) == 2
    assert "or switch --strict off" in capsys.readouterr().err
    assert not Path("a.png").exists()
    assert main([*draw, "--out", "a.png", "--steps", "2"]) == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--concept", "spaceship"], "'spaceship' is not an object"),
        (["--kind", "style"], "'gun' is not a style"),
        (["--with", "rum"], "'rum' is not an object"),
        (["--with", "gun"], "equals the concept"),
        (["--when", "at night"], "names no background"),
        (["--with", "beer", "--when", "on red"], "--when belongs to"),
        (["--level", "thorough"], "--level"),
        (["--judge", "clip:nowhere"], "neither demo, nudenet nor a folder"),
        (["--eye", "clip:nowhere"], "is not there"),
        (["--eye", "d.safetensors"], "is not there"),
        (["--eye", "lpips:d.safetensors"], "holds no LPIPS"),
        (["--retain", "cat"], "or take --judge clip:PATH"),
        (["--images", "0"], "images is 0"),
        (["--steps", "0"], "steps is 0"),
        (["--cfg", "0"], "cfg is 0"),
        (["--html", "."], "give a file name"),
        (["--state", "d.safetensors"], "is a file"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: object) -> None:
        pytest.fail("a model was loaded before the input was checked")

    monkeypatch.setattr(trust_engine.models.load, "load_model", load)
    before = sorted(Path().iterdir())
    try:
        code: object = main([*AUDIT, *flags])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert (code, captured.err.count("\n")) == (2, 1)
    assert says in captured.err
    assert sorted(Path().iterdir()) == before


def test_an_audit_is_kept_in_the_run_store_unless_that_is_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    level = replace(LEVEL, shots=1, neutral=1, pairs=1, samplers=(), cfgs=(), steps=(), attacks=())
    monkeypatch.setattr(trust_engine.audit, "pick_level", lambda _: level)
    command = [*AUDIT, "--images", "1", "--steps", "1"]
    monkeypatch.setenv("TRUST_RUNS", "kept")
    assert main([*command, "--no-runs"]) == 0
    assert not Path("kept").exists()
    assert main(command) == 0
    assert "finished before" not in capsys.readouterr().err
    assert main(command) == 0
    assert "this audit was finished before with the same inputs" in capsys.readouterr().err
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["audit_parts"] == len(list(Path("kept").iterdir()))
    assert main(["runs", "--clear"]) == 0 and not list(Path("kept").iterdir())


@pytest.mark.parametrize("kept", [True, False])
def test_prompts_that_the_encoder_cuts_are_said_and_a_stop_says_what_is_kept(
    kept: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The toy takes each word for ten tokens; Ctrl-C comes when the bar is drawn."""

    def stopped(title: str) -> None:
        raise KeyboardInterrupt

    model = toy_model()
    monkeypatch.setenv("TRUST_RUNS", "kept" if kept else "off")
    monkeypatch.setattr(model.encoder, "count_tokens", lambda p: 10 * len(p.split()))
    monkeypatch.setattr(trust_engine.models.load, "load_model", lambda *_: model)
    monkeypatch.setattr(trust_engine.cli.progress, "passes_bar", stopped)
    assert main([*AUDIT, "--images", "1", "--steps", "2"]) == 130
    said = capsys.readouterr().err
    assert "warning: the text encoder reads 75 tokens: of 'a" in said
    assert "more prompts are cut" in said
    assert ("the same audit goes on there" in said) == kept
