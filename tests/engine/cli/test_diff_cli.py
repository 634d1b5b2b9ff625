"""`python -m trust_engine diff ...`: does what it says, or says in one line why not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine.diff.test_diff_file import spelled
from safetensors import safe_open
from safetensors.torch import load_file

from toys.small_unet import (
    KEY,
    scrubbed_diff,
    small_base,
    small_checkpoint,
    small_diff,
    small_weights,
)
from trust_engine.cli.main import main
from trust_engine.diff import (
    SparseOffset,
    WeightDiff,
    combine,
    load_diff,
    payload_sha256,
    save_diff,
)
from trust_engine.models.load import DEMO
from trust_engine.models.unet_keys import LDM_PREFIX

AUDIT = {
    "ua": {"value": 0.95, "low": 0.9, "high": 0.98, "n": 80},
    "judge": "CNN",
    "per_object": {"cat": {"value": 1.0}},
    "base": small_base(),
    "diffs": [{"sha256": payload_sha256(small_diff()), "strength": 1.0}],
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_diff(small_diff(), Path("a.safetensors"))
    save_diff(small_diff(1), Path("b.safetensors"))
    save_diff(small_diff(2, base=1), Path("other.safetensors"))
    small_checkpoint(Path("model.safetensors"))
    Path("audit.json").write_text(json.dumps(AUDIT))


def ran(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Run a command that succeeds: (output, warnings)."""
    assert main(["diff", *line.split()]) == 0
    return capsys.readouterr()


def test_info_reads_like_a_label(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = ran("info a.safetensors", capsys)
    for text in ("gun", "demo", small_base(), "predicts eps", "-2 to 2", "none noted", "6 weights"):
        assert text in out
    ran("annotate a.safetensors --audit audit.json --author Ann --licence CC0-1.0", capsys)
    out, _ = ran("info a.safetensors", capsys)
    for text in ("ua 0.95 (0.9 to 0.98), n 80", "judge CNN", "Ann", "CC0-1.0"):
        assert text in out
    told = json.loads(ran("info a.safetensors --json", capsys)[0])
    assert told["notes"]["audit"] == AUDIT
    assert told["concepts"] == ["gun"]
    assert told["sha256"] == payload_sha256(small_diff())


def test_a_stranger_cannot_write_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\r\nSAFE " + "x" * 5000
    spec = json.dumps({"concept": {"words": [evil], "kind": evil}})
    provenance = {"spec": spec, "base": evil, "family": evil, "prediction": evil, "engine": evil}
    notes = {"author": evil, "audit": {evil: evil}, "licence": [evil]}
    save_diff(WeightDiff(small_diff().offsets, provenance, notes), Path("evil.safetensors"))
    out, _ = ran("info evil.safetensors", capsys)
    assert out.replace("\n", "").isprintable()
    assert max(map(len, out.splitlines())) < 350
    assert main(["diff", "verify", "evil.safetensors", "--model", "model.safetensors"]) == 2
    assert capsys.readouterr().err.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "provenance", [{}, {"spec": "{"}, {"spec": "[]"}, {"parts": [1, {"parts": []}]}]
)
def test_info_of_a_diff_that_says_little(
    provenance: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    save_diff(replace(small_diff(), provenance=provenance), Path("c"))
    assert "not said" in ran("info c", capsys)[0]


def test_verify(capsys: pytest.CaptureFixture[str]) -> None:
    out, warnings = ran("verify a.safetensors --model model.safetensors --strict", capsys)
    assert "sound" in out and "fits" not in out
    assert "model.safetensors: has every weight that the diff changes" in out
    assert "q, k and v are the very ones that it was made from" in out
    assert "Not compared" in out and "text encoder, VAE" in out
    assert payload_sha256(small_diff()) in out
    assert not warnings
    out, warnings = ran("verify other.safetensors --model model.safetensors", capsys)
    assert small_base() in warnings
    assert small_base(1) in warnings
    assert "audit does not cover" in warnings
    assert "q, k and v are not the ones that it was made from" in out


def test_apply_writes_the_patched_model(capsys: pytest.CaptureFixture[str]) -> None:
    line = "apply a.safetensors b.safetensors:-0.5 --model model.safetensors --out new/out"
    out, warnings = ran(line, capsys)
    assert "entries changed; rounding lost" in out
    assert not warnings
    expected = small_weights()[KEY].clone()
    for diff, strength in ((small_diff(), 1.0), (small_diff(1), -0.5)):
        expected += strength * diff.offsets[KEY].dense()
    assert torch.equal(load_file("new/out")[LDM_PREFIX + KEY], expected)


def test_apply_and_undo(capsys: pytest.CaptureFixture[str]) -> None:
    ran("apply a.safetensors --model model.safetensors --out patched", capsys)
    _, warnings = ran("apply a.safetensors:-1 --model patched --out undone", capsys)
    assert not warnings  # the patched model's record says what is in it
    assert main(["diff", "apply", "a.safetensors", "--model", "patched", "--out", "twice"]) == 2
    assert "is in patched already" in capsys.readouterr().err
    ran("apply a.safetensors --model undone --out again", capsys)
    for name, tensor in load_file("undone").items():
        torch.testing.assert_close(tensor, load_file("model.safetensors")[name])


def test_merge_by_fit(capsys: pytest.CaptureFixture[str]) -> None:
    letters = {}
    with safe_open(DEMO, "pt") as file:
        for letter in "qv":
            key = KEY.replace("to_q", f"to_{letter}")
            letters[key] = SparseOffset.of(torch.ones(file.get_slice(LDM_PREFIX + key).get_shape()))
    for name in ("gun", "bomb"):
        spec = json.dumps({"concept": {"words": [name], "kind": "single"}})
        save_diff(WeightDiff(letters, {"spec": spec, "family": "demo"}), Path(name))
    _, warnings = ran("merge gun bomb --how fit --model demo --out f", capsys)
    assert "made for another model" in warnings
    assert list(load_diff(Path("f")).offsets) == [KEY.replace("to_q", "to_v")]
    out, _ = ran("info f", capsys)
    assert "gun; bomb" in out


def test_merge(capsys: pytest.CaptureFixture[str]) -> None:
    parts = [(small_diff(), 1.0), (small_diff(1), -0.5)]
    out, _ = ran("merge a.safetensors b.safetensors:-0.5 --out c", capsys)
    assert spelled(load_diff(Path("c"))) == spelled(combine(parts))
    assert "entries in common" in out
    assert "100.0% of the squared change kept" in out
    out, _ = ran("merge a.safetensors b.safetensors --keep 0.02 --json --out d", capsys)
    told = json.loads(out)
    assert told["entries_changed"] == load_diff(Path("d")).changed < 0.021 * 36_864
    assert 0.1 < told["energy_kept"] < 1
    assert told["overlap"][0]["first"] == "a.safetensors"
    assert "gun; gun x-0.5" in ran("info c", capsys)[0]
    assert "other bases" in ran("merge a.safetensors other.safetensors --out e", capsys)[1]


def test_export(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = ran("export a.safetensors:0.5 --format dense --out dense.safetensors", capsys)
    assert "error" in out
    name = "lora_unet_" + KEY.removesuffix(".weight").replace(".", "_")
    half = (0.5 * small_diff().offsets[KEY].dense()).half()
    assert torch.equal(load_file("dense.safetensors")[f"{name}.diff"], half)
    out, _ = ran("export a.safetensors --format lora --max-rank 8 --out lora.safetensors", capsys)
    assert "ranks 8 to 8" in out
    for kind in ("checkpoint", "unet-folder", "unet-pt"):
        line = f"export a.safetensors --format {kind} --model model.safetensors --out {kind}"
        assert "rounding lost" in ran(line, capsys)[0]
    assert Path("unet-folder/config.json").is_file()


def test_low_rank_goes_through_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    diff = scrubbed_diff().compact()
    save_diff(diff, Path("low.safetensors"))
    out, _ = ran("info low.safetensors", capsys)
    assert "10 directions of low rank" in out and "1 weights elsewhere" in out
    told = json.loads(ran("info low.safetensors --json", capsys)[0])
    assert (told["directions"], told["entries_changed"]) == (10, diff.changed)
    assert "directions" not in ran("info a.safetensors", capsys)[0]
    out, err = ran("verify low.safetensors --model model.safetensors", capsys)
    assert "the very ones" in out and not err
    out, _ = ran(
        "apply low.safetensors:0.5 --model model.safetensors --out new.safetensors", capsys
    )
    assert f"{diff.changed:,} entries changed" in out
    made = load_file("new.safetensors")
    for key, weight in small_weights().items():
        change = 0.5 * diff.offsets[key].dense() if key in diff.offsets else 0
        assert torch.equal(made[LDM_PREFIX + key], weight + change), key
    ran("merge low.safetensors b.safetensors:-1 --out sum.safetensors", capsys)
    assert load_diff(Path("sum.safetensors")).directions == 10
    ran("annotate low.safetensors --author Ann", capsys)
    noted = load_diff(Path("low.safetensors"))
    assert spelled(noted) == spelled(diff) and noted.notes == {"author": "Ann"}


def test_annotate_leaves_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("a.safetensors").read_bytes()
    assert "as before" in ran("annotate a.safetensors --notes hello --out noted", capsys)[0]
    assert Path("a.safetensors").read_bytes() == before
    assert load_diff(Path("noted")).notes == {"notes": "hello"}
    main(["diff", "annotate", "noted", "--notes", ""])
    assert Path("noted").read_bytes() == before


def test_fingerprint(capsys: pytest.CaptureFixture[str]) -> None:
    small_checkpoint(Path("half"), dtype=torch.float16)
    for name in ("model.safetensors", "half"):
        assert ran(f"fingerprint {name}", capsys)[0] == f"{small_base()}  demo  {name}\n"
    told = json.loads(ran("fingerprint half --json", capsys)[0])
    assert told == {"base": small_base(), "family": "demo"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "ACTION"),
        ("eat a", "eat"),
        ("info", "FILE"),
        ("info missing", "missing: no such file"),
        ("info model.safetensors", "not a TRUST diff"),
        ("info pickle.pt", "a torch pickle"),
        ("info a.safetensors b.safetensors", "unrecognized"),
        ("verify cut", "cut short"),
        ("verify edited", "damaged or edited"),
        ("verify a.safetensors --model missing", "missing: no such file"),
        ("verify a.safetensors --model pickle.pt", "a torch pickle"),
        ("verify a.safetensors --model a.safetensors", "no Stable Diffusion UNet"),
        ("verify other.safetensors --model model.safetensors --strict", "--strict"),
        ("verify sdxl --model model.safetensors", "another kind of model (sdxl, this is demo"),
        ("apply a.safetensors --out x", "--model"),
        ("apply a.safetensors:3 --model model.safetensors --out x", "strength 3.0"),
        ("apply a.safetensors --model model.safetensors --out model.safetensors", "model itself"),
        ("apply sdxl --model model.safetensors --out x", "another kind of model"),
        ("apply other.safetensors --model model.safetensors --out x --strict", "--strict"),
        ("apply edited --model model.safetensors --out x", "damaged or edited"),
        ("merge a.safetensors sdxl --out x", "other kinds of model"),
        ("merge a.safetensors --keep 2 --out x", "--keep"),
        ("merge a.safetensors --out .", "give a file name"),
        ("merge a.safetensors --how magic --out x", "--how"),
        ("merge a.safetensors b.safetensors --how fit --out x", "add --model"),
        ("merge a.safetensors --how fit --model model.safetensors --out x", "text encoder"),
        ("export a.safetensors --out x", "--format"),
        ("export a.safetensors --format checkpoint --out x", "add --model"),
        ("export a.safetensors --format lora --error 2 --out x", "error bound"),
        ("export a.safetensors --format lora --max-rank 0 --out x", "max rank"),
        ("export a.safetensors --format unet-folder --model model.safetensors --out .", "there"),
        ("annotate a.safetensors", "nothing to note"),
        ("annotate a.safetensors --audit missing", "no audit in JSON"),
        ("annotate a.safetensors --audit a.safetensors", "no audit in JSON"),
        ("annotate a.safetensors --audit list.json", "a JSON object"),
        ("annotate protected --notes x", "write-protected"),
        ("fingerprint a.safetensors", "no Stable Diffusion UNet"),
    ],
)
def test_bad_input_is_one_line(line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = Path("a.safetensors").read_bytes()
    torch.save({"a": torch.zeros(1)}, "pickle.pt")
    Path("cut").write_bytes(content[:-9])
    Path("edited").write_bytes(content.replace(b"gun", b"fun"))
    Path("list.json").write_text("[1]")
    sdxl = {KEY.replace("to_q", "to_k"): SparseOffset.of(torch.ones(3, 2048))}
    save_diff(WeightDiff(sdxl, {"family": "sdxl"}), Path("sdxl"))
    Path("protected").write_bytes(content)
    Path("protected").chmod(0o444)
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    try:
        code: object = main(["diff", *line.split()])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert captured.err.startswith("trust_engine: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_merge_of_many_says_it_in_few_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for seed in range(12):
        files.append(str(tmp_path / f"{seed}.safetensors"))
        save_diff(WeightDiff(small_diff(seed).offsets, {"family": "demo"}), Path(files[-1]))
    assert main(["diff", "merge", *files, "--out", str(tmp_path / "all.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 10 and "of 12 diffs, each beside all the others (12: they" in lines[-2]
    out = str(tmp_path / "all.safetensors")
    assert main(["diff", "merge", *files, "--json", "--out", out]) == 0
    told = json.loads(capsys.readouterr().out)["overlap"]
    assert [one["first"] for one in told] == files
    assert {one["second"] for one in told} == {"the others"}
