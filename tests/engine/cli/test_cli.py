"""The command line: bad input is one clear line, before any model is loaded or file written."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import trust_engine.diff.apply
import trust_engine.models.load
import trust_engine.unlearn.run
from toys.tiny import frozen_bits, tiny_denoiser, tiny_model
from trust_engine.cli.inputs import check_all_fit
from trust_engine.cli.main import main
from trust_engine.diff import SparseOffset, WeightDiff, fingerprint, load_diff, save_diff
from trust_engine.errors import ModelError
from trust_engine.models.unet_keys import LDM_PREFIX
from trust_engine.models.vae import NoDecoder
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.trainer import Metrics, SelectiveTrainer

FIRST = LDM_PREFIX + "input_blocks.0.0.weight"
UNLEARN = ["unlearn", "--model", "m", "--out", "new/o", "--concept", "gun"]
BRIEF = [*UNLEARN[:-2], "--spec", "brief.json"]  # the same in a fraction of the passes
PROMPTS = ["prompts", "--model", "m", "--concept", "gun"]
GENERATE = ["generate", "--model", "m", "--out", "new/o", "--prompt", "a cat"]
AUDIT = ["audit", "--model", "m", "--diff", "d", "--concept", "gun", "--json", "new/o"]


class Failure:
    """What a refused command left behind: its exit code, its one line, and nothing else."""

    def __init__(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        before = files()
        try:
            self.code: object = main(arguments)
        except SystemExit as stop:
            self.code = stop.code
        captured = capsys.readouterr()
        assert self.code == 2, captured
        assert captured.out == ""
        assert captured.err.endswith("\n")
        assert captured.err.count("\n") == 1, captured.err
        assert captured.err.startswith("trust_engine: ")
        assert files() == before
        self.line = captured.err


def files() -> dict[str, bytes]:
    """Read every file below the working folder; of a folder, that it is there."""
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in Path().rglob("*")}


@pytest.fixture(autouse=True)
def _in_a_folder_with_odd_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("I am no checkpoint")
    Path("pickle.ckpt").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"a": torch.zeros(2)}, "zip.safetensors")
    Path("foreign.safetensors").write_bytes(save({"a": torch.zeros(2)}))
    for channels in (320, 64):
        weights = {FIRST: torch.zeros(channels, 4, 3, 3)}
        Path(f"sd{channels}.safetensors").write_bytes(save(weights))
    Path("scalar.safetensors").write_bytes(save({FIRST: torch.tensor(1.0)}))
    odd = {FIRST: torch.zeros(64, 4, 3, 3), LDM_PREFIX + "control.0.weight": torch.zeros(2)}
    Path("odd.safetensors").write_bytes(save(odd))
    Path("stays.txt").write_text("a cat\n\n  a dog \n")
    Path("blank.txt").write_text(" \n")
    gun = (ConceptSpec(("gun",)),)
    Path("spec.json").write_text(UnlearnSpec(gun).to_json())
    Path("brief.json").write_text(UnlearnSpec(gun, passes=64, trajectory_steps=2).to_json())
    Path("broken.json").write_text("{")
    Path("bad.json").write_text('{"concept": {"words": ["gun"]}, "stepps": 3}')


@pytest.fixture
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a model is loaded."""

    def load(*_: object) -> None:
        pytest.fail("a model was loaded before the input was checked")

    monkeypatch.setattr(trust_engine.models.load, "load_model", load)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> trust_engine.models.load.LoadedModel:
    """Let the command line load the tiny model, which has no decoder."""
    lent = tiny_model()
    model = trust_engine.models.load.LoadedModel(
        lent.denoiser,
        lent.encoder,
        NoDecoder(),
        (4, 4),
        lent.vocabulary,  # type: ignore[arg-type]
        (),
        "tiny",
    )
    monkeypatch.setattr(trust_engine.models.load, "load_model", lambda *_: model)
    return model


@pytest.mark.usefixtures("_no_model")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["forget"], "forget"),
        (["unlearn"], "--model"),
        (["unlearn", "--model", "m", "--out", "o"], "--concept"),
        ([*UNLEARN, "--spec", "spec.json"], "not allowed"),
        ([*UNLEARN, "--kind", "word"], "--kind"),
        ([*UNLEARN, "--device", "tpu"], "--device"),
        ([*UNLEARN, "--steps", "many"], "--steps"),
        ([*UNLEARN, "--colour"], "--colour"),
        ([*UNLEARN, "--steps", "0"], "steps is 0"),
        ([*UNLEARN, "--xi", "2"], "add --schedule bounded"),
        ([*UNLEARN, "--steps", "100001"], "steps is 100001"),
        ([*UNLEARN, "--seed", "-1"], "seed is -1"),
        ([*UNLEARN, "--seed", str(2**63)], "seed is 92"),
        ([*UNLEARN, "--preserve", ""], "preserve is empty"),
        ([*UNLEARN, "--preserve", "Gun"], "preserve names the concept itself"),
        ([*UNLEARN, "--anchor", ""], "anchor is empty"),
        ([*UNLEARN, "--kind", "combination"], "--with is missing"),
        ([*UNLEARN, "--kind", "conditional"], "--when is missing"),
        ([*UNLEARN, "--with", ""], "--with is missing"),
        ([*UNLEARN, "--when", ""], "--when is missing"),
        ([*UNLEARN, "--kind", "single", "--with", "beer"], "--with belongs to"),
        ([*UNLEARN, "--with", "beer", "--when", "on red"], "--when belongs to"),
        ([*UNLEARN, "--with", "gun"], "equals the concept"),
        ([*UNLEARN, "--also", "gun"], "same concept twice"),
        ([*UNLEARN, "--also", "toy", "--preserve", "a toy"], "preserve names the concept 'toy'"),
        ([*UNLEARN, "--template", "a photo"], "needs {} once"),
        ([*UNLEARN, "--stays", "stays.txt"], "--stays lists pictures, which only robust"),
        ([*UNLEARN, "--robust", "--stays", "missing.txt"], "missing.txt: cannot be read"),
        ([*UNLEARN, "--robust", "--stays", "blank.txt"], "blank.txt: is empty"),
        ([*UNLEARN, "--robust", "--stays", "."], "cannot be read"),
        ([*UNLEARN, "--also", "dog", "--robust", "--stays", "stays.txt"],
         "--stays shows what is to be forgotten ('a dog')"),
        ([*UNLEARN[:-2], "--spec", "spec.json", "--stays", "stays.txt"], "--spec"),
        ([*PROMPTS, "--out", "new/o"], "add --robust"),
        ([*PROMPTS, "--robust", "--stays", "stays.txt", "--out", "./stays.txt"],
         "is what stays itself"),
        ([*PROMPTS, "--robust", "--with", "beer"], "--robust cannot take"),
        ([*UNLEARN, "--budget", "2"], "budget is 2"),
        ([*UNLEARN, "--engine", "remote"], "--engine"),
        ([*UNLEARN, "--robust", "--engine", "global"], "passes over the global engine"),
        ([*UNLEARN, "--state", "."], "give a file name"),
        ([*UNLEARN, "--pictures", "-1"], "pictures is -1"),
        ([*UNLEARN, "--pictures", "17"], "pictures is 17"),
        ([*UNLEARN, "--judge", "clip:missing"], "judge 'clip:missing' is neither"),
        ([*UNLEARN[:-1], ""], "concept is empty"),
        ([*UNLEARN[:-1], "gun", "  "], "concept is empty"),
        ([*UNLEARN[:-2], "--spec", "missing.json"], "missing.json"),
        ([*UNLEARN[:-2], "--spec", "broken.json"], "not JSON"),
        ([*UNLEARN[:-2], "--spec", "bad.json"], "stepps"),
        ([*UNLEARN[:-2], "--spec", "spec.json", "--with", "beer"], "--spec"),
        ([*UNLEARN[:-2], "--spec", "spec.json", "--anchor", "toy"], "--spec"),
        ([*UNLEARN[:-2], "--spec", "spec.json", "--steps", "0"], "steps is 0"),
        ([*UNLEARN, "--out", "."], "give a file name"),
        ([*UNLEARN, "--out", "text/o"], "text/o: cannot write there"),
        ([*UNLEARN, "--out", "x" * 300], "cannot write there"),
        ([*UNLEARN, "--model", "text", "--out", "./text"], "is the model itself"),
        ([*GENERATE, "--steps", "0"], "steps is 0"),
        ([*GENERATE, "--steps", "1000"], "steps is 1000"),
        ([*GENERATE, "--cfg", "0"], "cfg is 0"),
        ([*GENERATE, "--cfg", "nan"], "cfg "),
        ([*GENERATE, "--seed", "-1"], "seed is -1"),
        ([*GENERATE, "--seed", str(2**64)], "seed is "),
        ([*GENERATE, "--out", "text/o.png"], "cannot write there"),
        ([*GENERATE, "--diff", "missing:0.5"], "missing: no such file"),
        ([*GENERATE, "--diff", "text"], "text: not a safetensors file"),
        ([*GENERATE, "--diff", "pickle.ckpt:-1"], "pickle.ckpt: a torch pickle"),
        ([*GENERATE, "--diff", "foreign.safetensors"], "not a TRUST diff"),
        ([*GENERATE, "--diff", "text:2.5"], "strength 2.5"),
        ([*GENERATE, "--diff", "text:nan"], "strength nan"),
        ([*GENERATE, "--diff", "text:-inf"], "strength -inf"),
        ([*AUDIT, "--concept", "spaceship"], "'spaceship' is not an object"),
        ([*AUDIT, "--concept", ""], "concept is empty"),
        ([*AUDIT, "--images", "0"], "images is 0"),
        ([*AUDIT, "--images", "100000"], "images is 100000"),
        ([*AUDIT, "--seed", "-1"], "seed is -1"),
        ([*AUDIT, "--json", "."], "give a file name"),
        ([*AUDIT, "--diff", "missing"], "d: no such file"),
        (["demo", "--concept", "spaceship"], "'spaceship' is not an object"),
        (["demo", "--seed", "-1"], "seed is -1"),
        (["demo", "--out", "text"], "cannot write there"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_a_model_loads(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in Failure(arguments, capsys).line


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("missing", "missing: no such file"),
        ("new\nline", "new line: no such file"),
        (".", "no such file"),
        ("x" * 300, "cannot be read"),
        ("text", "text: not a safetensors file"),
        ("pickle.ckpt", "a torch pickle, which can run code"),
        ("zip.safetensors", "convert it to safetensors"),
        ("foreign.safetensors", "not a Stable Diffusion checkpoint"),
        ("sd320.safetensors", "a UNet of 320 channels"),
        ("scalar.safetensors", "a UNet of 0 channels"),
        ("odd.safetensors", "the checkpoint's UNet lacks"),
        ("sd64.safetensors", "the checkpoint's UNet lacks"),
    ],
)
@pytest.mark.parametrize("command", [UNLEARN, GENERATE])
def test_a_model_that_is_none_is_refused(
    command: list[str], model: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in Failure([*command, "--model", model], capsys).line


def test_a_checkpoint_of_other_shapes_is_refused() -> None:
    weights = {FIRST: torch.zeros(64, 9, 3, 3)}
    Path("inpaint.safetensors").write_bytes(save(weights))
    with pytest.raises(ModelError, match="an inpainting model"):
        trust_engine.models.load.load_model("inpaint.safetensors")


def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    line = Failure([*UNLEARN, "--model", "foreign.safetensors", "--device", missing], capsys).line
    assert f"device '{missing}' is not available here" in line


def test_unlearns_and_reports(
    tiny: trust_engine.models.load.LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    before = frozen_bits(tiny.denoiser.module)
    assert main([*UNLEARN, "--steps", "2", "--seed", "7", "--json"]) == 0
    result, diff = json.loads(capsys.readouterr().out), load_diff(Path("new/o"))
    spec = UnlearnSpec.from_json(diff.provenance["spec"])
    assert (spec.steps, spec.seed, spec.concepts[0].words) == (2, 7, ("gun",))
    assert result["diff"] == str(Path("new/o"))
    assert result["entries_changed"] == diff.changed > 0
    assert result["unet_passes"] == diff.provenance["passes"]
    assert result["preserved"] and result["picture_passes"] == 384
    assert len(result["pictures"]) == 8 and result["headline"].startswith("gun: changed in ")
    assert frozen_bits(tiny.denoiser.module) == before
    assert os.listdir("new") == ["o"]


@pytest.mark.usefixtures("tiny")
def test_the_report_begins_with_what_was_seen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BRIEF, "--steps", "2", "--pictures", "2"]) == 0
    head, *rest = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"new/o: gun: changed in [01] of 1 test pictures; .*", head)
    passes = load_diff(Path("new/o")).provenance["passes"]
    assert main([*BRIEF, "--steps", "2", "--pictures", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["picture_passes"] == 0 and "no test pictures were drawn" in told["headline"]
    asked = told["asking_passes"]
    assert told["unet_passes"] == passes and asked > 0
    assert (
        f"{passes} UNet passes, {asked} more to ask whether the model knows the word, and 96 more "
        "for the test pictures" in "".join(rest)
    )


@pytest.mark.usefixtures("tiny")
def test_a_run_that_ends_above_the_start_is_said_to_have_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trust_engine.unlearn.run.Unlearning, "effect", 1.2)
    assert main([*BRIEF, "--steps", "2", "--pictures", "0", "--no-runs"]) == 0
    told = capsys.readouterr().out
    assert "The run failed: 120% of the concept's effect is left, more than before" in told
    before = Path("new/o").read_bytes()
    strict = [*BRIEF, "--steps", "2", "--seed", "5", "--pictures", "0", "--no-runs", "--strict"]
    assert main(strict) == 3
    assert "the run failed: 120%" in capsys.readouterr().err
    assert Path("new/o").read_bytes() == before, "what a failed run made stands beside it"
    assert load_diff(Path("new/o.failed")).changed > 0


@pytest.mark.usefixtures("tiny")
def test_a_run_that_diverges_leaves_its_last_good_state_under_another_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = SelectiveTrainer.step

    def spoiled(trainer: SelectiveTrainer) -> Metrics:
        if trainer.done == 2:
            trainer.problem.scale.fill_(float("nan"))  # type: ignore[attr-defined]
        return step(trainer)

    monkeypatch.setattr(SelectiveTrainer, "step", spoiled)
    line = [*BRIEF, "--steps", "6", "--pictures", "0", "--no-runs"]
    line[line.index("new/o")] = "new/o.safetensors"
    assert main(line) == 3
    assert "the last good state is in new/o.incomplete.safetensors" in capsys.readouterr().err
    assert os.listdir("new") == ["o.incomplete.safetensors"]
    assert load_diff(Path("new/o.incomplete.safetensors")).provenance["complete"] is False


@pytest.mark.usefixtures("_no_model")
@pytest.mark.parametrize("why", ["failed", "incomplete"])
def test_a_failed_run_would_not_be_written_over_the_model(
    why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["unlearn", "--model", f"sd.{why}.safetensors", "--concept", "gun"]
    Path(line[2]).write_bytes(Path("sd320.safetensors").read_bytes())
    refused = Failure([*line, "--out", "sd.safetensors"], capsys)
    assert f"sd.{why}.safetensors: is the model itself" in refused.line


@pytest.mark.usefixtures("tiny")
def test_what_keeps_us_from_looking_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, says in (
        (KeyboardInterrupt(), "stopped by you"),
        (MemoryError("no room"), "memory ran out"),
        (ModelError("no judge there"), "no judge there"),
    ):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("trust_engine.frontend.draw_and_judge.draw", fail)
        assert main([*BRIEF, "--steps", "1"]) == 0
        assert load_diff(Path("new/o")).changed
        assert f"No test pictures: {says}" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_a_spec_file_and_its_flags_give_the_same_diff() -> None:
    Path("spec.json").write_text(UnlearnSpec((ConceptSpec(("gun",)),)).to_json())
    flags = ["--steps", "1", "--pictures", "0", "--out", "one"]
    assert main([*UNLEARN, *flags]) == 0
    assert (
        main(
            [
                *UNLEARN[:-2],
                "--spec",
                "spec.json",
                "--steps",
                "1",
                "--pictures",
                "0",
                "--out",
                "two",
            ]
        )
        == 0
    )
    assert Path("one").read_bytes() == Path("two").read_bytes()


def test_a_diff_of_another_kind_of_model_is_refused(
    tiny: trust_engine.models.load.LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    offsets = {key: SparseOffset.of(torch.ones(2, 2))}
    save_diff(WeightDiff(offsets, {"base": fingerprint(tiny.denoiser)}), Path("other"))
    line = Failure([*GENERATE, "--diff", "other:0.5"], capsys).line
    assert "other:0.5: made for another" in line
    assert fingerprint(tiny.denoiser) == fingerprint(tiny_denoiser())


@pytest.mark.usefixtures("tiny")
def test_stopped_by_the_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trust_engine.cli.progress.run_with_bar", interrupt)
    before = files()
    assert main(UNLEARN) == 130
    assert "stopped" in capsys.readouterr().err
    assert files() == before


@pytest.mark.usefixtures("tiny")
def test_prompts_are_listed_edited_and_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    """What `prompts` writes is what a run draws, and what was edited is drawn in its place."""
    few = ["--model", "m", "--spec"]
    spec = UnlearnSpec((ConceptSpec(("gun",)),), passes=64, trajectory_steps=2, robust=True)
    Path("robust.json").write_text(spec.to_json())
    assert main(["prompts", *few, "robust.json", "--out", "engine.txt"]) == 0
    shown, lines = capsys.readouterr().out, Path("engine.txt").read_text().splitlines()
    assert "  a gun -> (the empty prompt)\n" in shown
    assert f"{len(lines)} pictures show what must stay:\n  {lines[0]}\n" in shown
    assert main(["prompts", *few, "robust.json", "--template", "a {}", "--json"]) == 2
    assert "--spec says all" in capsys.readouterr().err
    assert main([*PROMPTS, "--robust", "--template", "my {}"]) == 0
    assert "24 pictures show gun:\n  my a gun (x24)\n" in capsys.readouterr().out
    assert main(["prompts", *few, "robust.json", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["stays"] == lines and "a gun" in told["shown"]["gun"]
    assert ["a gun", ""] in told["erased"] and set(told["preserved"]) & set(lines)
    run = trust_engine.unlearn.run.Unlearning(tiny_model(), spec)
    for _ in run.ask():
        pass
    assert run.lists is not None and list(run.lists.rest) == lines

    Path("mine.txt").write_text("\ufeffa cat, red\r\n\r\n a tree \r\n", "utf-16-le")
    flags = ["prompts", "--model", "m", "--concept", "gun", "--robust", "--stays", "mine.txt"]
    assert main([*flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stays"] == ["a cat, red", "a tree"]
    assert main([*PROMPTS, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"erased", "preserved"}


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ([], ["demo", "generate", "unlearn", "audit", "examples:"]),
        (["demo"], ["--concept", "--out", "--seed", "--device"]),
        (
            ["generate"],
            ["--model", "--diff", "STRENGTH", "--prompt", "--seed", "--steps", "--cfg", "--out"],
        ),
        (
            ["unlearn"],
            ["--model", "--concept", "--spec", "--kind", "--with", "--when", "--preserve",
             "--anchor", "--device", "--steps", "--seed", "--out", "--json"],
        ),
        (["prompts"], ["--model", "--concept", "--with", "--robust", "--stays", "--out", "--json"]),
        (["audit"], ["--model", "--diff", "--concept", "--seed", "--images", "--json"]),
    ],
)  # fmt: skip
def test_help_teaches(
    command: list[str], flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert [flag for flag in flags if flag not in shown] == []


def test_the_real_command(tmp_path: Path) -> None:
    """In a process of its own nothing else is printed, such as a library's warnings."""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "trust_engine", *GENERATE, "--model", "pickle.ckpt"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("trust_engine: pickle.ckpt: a torch pickle")


def test_many_diffs_are_checked_against_one_hash_of_the_model(
    tiny: trust_engine.models.load.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    real = trust_engine.diff.apply.fingerprint_of
    monkeypatch.setattr(
        "trust_engine.diff.apply.fingerprint_of", lambda *told: hashed.append(1) or real(*told)
    )
    diffs = [(WeightDiff({}, {"base": fingerprint(tiny.denoiser)}), 1.0) for _ in range(4)]
    hashed.clear()
    check_all_fit(["a", "b", "c", "d"], diffs, tiny)
    assert len(hashed) == 1
