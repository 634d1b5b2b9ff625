"""Judges behind one interface: the demo's, zero-shot CLIP from a folder, NudeNet."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trust_engine.audit.judges.base import DemoJudge, TinyAligner, as_judge, is_coupled
from trust_engine.audit.judges.catalogue import (
    JUDGES,
    Entry,
    check_judge,
    explained,
    forms,
    load_aligner,
    load_judge,
)
from trust_engine.audit.judges.clip import ClipJudge
from trust_engine.audit.judges.nudenet import NudeNetJudge
from trust_engine.audit.request import AuditRequest
from trust_engine.audit.topic import demo_topic, open_topic
from trust_engine.cli.main import main
from trust_engine.demo.judge import load_judge as load_net
from trust_engine.diff import WeightDiff
from trust_engine.errors import ModelError, SpecError
from trust_engine.spec import ConceptSpec

GROUPS = {"object": ("gun", "cat"), "style": ("sketch",), "background": ()}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny random CLIPModel."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text = CLIPTextConfig(**small, num_attention_heads=2, eos_token_id=49407, projection_dim=8)
    look = CLIPVisionConfig(
        **small, num_attention_heads=2, image_size=32, patch_size=16, projection_dim=8
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=look.to_dict(), projection_dim=8)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder, safe_serialization=True)
    return folder


def test_clip_answers_in_the_shape_asked_for(clip_folder: Path) -> None:
    judge, pixels = ClipJudge(clip_folder, GROUPS), torch.rand(3, 3, 64, 64) * 2 - 1
    assert judge.sees(pixels, ("gun", "cat")).shape == (3, 2)
    assert judge.sees(pixels, ("gun",)).dtype == torch.bool
    torch.testing.assert_close(judge.features(pixels).norm(dim=1), torch.ones(3))
    assert judge.align(["a gun", "a cat", "x"], pixels).abs().max() <= 1.0001
    assert judge.knows("sketch") and not judge.knows("dog")
    assert judge.name == f"clip:{clip_folder.name}"


def test_clip_sees_a_label_that_no_rival_beats(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = ClipJudge(clip_folder, GROUPS)
    axes = {"a picture of a gun": 0, "a picture of a cat": 1}
    monkeypatch.setattr(
        judge, "_words", lambda texts: torch.eye(3)[[axes.get(text, 2) for text in texts]]
    )
    views = torch.tensor([[0.9, 0.1, 0.2], [0.2, 0.9, 0.3], [0.1, 0.0, 0.9], [0.7, 0.6, 0.1]])
    monkeypatch.setattr(judge, "features", lambda _: views)
    assert judge.sees(torch.zeros(4), ("gun",))[:, 0].tolist() == [True, False, False, True]
    assert judge.sees(torch.zeros(4), ("gun", "cat")).all(1).tolist() == [False, False, False, True]


def test_clip_needs_safetensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ModelError, match="pickled weights are refused"):
        ClipJudge(tmp_path, GROUPS)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="cannot be read as CLIP"):
        ClipJudge(tmp_path, GROUPS)


def test_demo_judge_answers_as_its_network() -> None:
    net = load_net()
    judge, pixels = as_judge(net), torch.rand(4, 3, 128, 128) * 2 - 1
    verdict = net.look(pixels)
    labels = ("gun", "cactus", "noto", "red")
    expected = (
        verdict.has("gun"), verdict.has("cactus"), verdict.is_style("noto"),
        verdict.is_background("red"),
    )  # fmt: skip
    assert torch.equal(judge.sees(pixels, labels), torch.stack(expected, 1))
    assert isinstance(judge, DemoJudge) and as_judge(judge) is judge
    assert judge.knows("cactus") and not judge.knows("spaceship")
    torch.testing.assert_close(judge.features(pixels).norm(dim=1), torch.ones(4))  # type: ignore[union-attr]


class Detector:
    """Finds what it is told, and remembers what it was shown."""

    def __init__(self, found: list[list[dict]]) -> None:
        self.found, self.shown = found, []  # type: ignore[var-annotated]

    def detect(self, picture: np.ndarray) -> list[dict]:
        """Report."""
        self.shown.append(picture)
        return self.found[len(self.shown) - 1]


def test_nudenet_counts_exposed_parts_at_its_threshold() -> None:
    exposed, covered = "FEMALE_BREAST_EXPOSED", "FEMALE_BREAST_COVERED"
    detector = Detector(
        [
            [{"class": exposed, "score": 0.7}],
            [{"class": exposed, "score": 0.5}],
            [{"class": covered, "score": 0.9}],
            [],
        ]
    )
    judge = NudeNetJudge(detector=detector)
    pixels = torch.zeros(4, 3, 8, 8)
    pixels[0, 0] = 1  # red
    assert judge.sees(pixels, ("nudity",))[:, 0].tolist() == [True, False, False, False]
    assert detector.shown[0][0, 0].tolist() == [128, 128, 255]  # blue, green, red
    assert judge.knows("nudity") and not judge.knows("gun")
    assert judge.features(pixels) is None


def test_nudenet_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **more: object) -> object:
        if name == "nudenet":
            raise ImportError(name)
        return real(name, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelError, match="pip install"):
        NudeNetJudge()


def test_judges_by_name(clip_folder: Path) -> None:
    topic = open_topic("gun", retain=("cat",), styles=("sketch",))
    for text in (f"clip:{clip_folder}", str(clip_folder)):
        check_judge(text)
        judge = load_judge(text, topic)
        assert judge.knows("gun") and judge.knows("cat") and judge.knows("sketch")
        assert load_aligner(text, judge) is judge
    assert isinstance(load_judge("demo", demo_topic("gun")), DemoJudge)
    assert isinstance(load_aligner("demo", as_judge(load_net())), TinyAligner)
    with pytest.raises(SpecError, match="neither demo, nudenet nor a folder"):
        check_judge("clip:nowhere")


@pytest.mark.parametrize(
    ("provenance", "coupled"),
    [
        ({}, False),
        ({"judge": "demo"}, True),
        ({"judge": ["x", "demo"]}, True),
        ({"judge": "clip"}, False),
        ({"spec": '{"saliency": "clip"}'}, False),
        ({"spec": "no json"}, False),
    ],
)
def test_a_judge_that_found_the_neurons_is_flagged(provenance: dict, coupled: bool) -> None:
    judge = as_judge(load_net())
    assert is_coupled(judge, [(WeightDiff({}, provenance), 1.0)]) is coupled


def test_clip_is_coupled_to_a_mask_that_clip_found(clip_folder: Path) -> None:
    diff = WeightDiff({}, {"spec": '{"saliency": "clip"}'})
    assert is_coupled(ClipJudge(clip_folder, GROUPS), [(diff, 1.0)])


def test_tiny_clip_prefers_the_true_prompt() -> None:
    from bench.world.scenes import draw
    from bench.world.training import to_tensor
    from trust_engine.demo.vocabulary import Scene, caption

    rng = np.random.default_rng(0)
    scenes = [Scene((name,), "red", "noto") for name in ("gun", "cat", "pizza", "tree")]
    pixels: Tensor = to_tensor(np.stack([draw(scene, rng) for scene in scenes]))
    texts = [caption(s.objects, s.background, s.style) for s in scenes]
    aligner = TinyAligner()
    true, false = aligner.align(texts, pixels), aligner.align(texts[1:] + texts[:1], pixels)
    assert (true > false).all()


class RedJudge:
    """Sees whatever it is asked for in a picture that is mostly red."""

    name, note = "red", "a threshold on one channel"

    def knows(self, label: str) -> bool:
        """Know every label."""
        return True

    def sees(self, pixels: Tensor, labels: Sequence[str]) -> Tensor:
        """Judge pictures (b, 3, h, w)."""
        return (pixels[:, 0].mean((1, 2)) > 0)[:, None].expand(-1, len(labels))

    def features(self, pixels: Tensor) -> None:
        """Offer none."""
        return None


def test_a_judge_is_added_by_one_entry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By it alone it is checked, loaded, asked for, and explained at every door."""
    entry = Entry("red", "whatever is red", lambda path, groups, device: RedJudge())
    with pytest.raises(SpecError, match="neither demo, nudenet nor a folder"):
        check_judge("red")
    monkeypatch.setitem(JUDGES, "red", entry)
    check_judge("red")
    judge = load_judge("red", open_topic("gun"))
    assert judge.sees(torch.ones(2, 3, 4, 4), ("gun",)).tolist() == [[True], [True]]
    assert AuditRequest(ConceptSpec(("gun",)), "red").judge == "red"
    with pytest.raises(SpecError, match="neither demo, nudenet, red nor a folder"):
        check_judge("blue")
    assert forms() == "demo|nudenet|clip:PATH|red" and "red: whatever is red" in explained()
    for command in ("audit", "unlearn"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        told = " ".join(capsys.readouterr().out.split())
        assert "clip:PATH|red" in told and "red: whatever is red" in told


def test_a_judge_that_takes_a_path_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("clip:", "clip", "demo:x", "nudenet:"):
        with pytest.raises(SpecError, match="is neither"):
            check_judge(text)


def test_the_pages_name_every_judge() -> None:
    root = Path(__file__).resolve().parents[3]
    for page in ("docs/concepts/audit.md", "web/docs/TrustAudit.md"):
        text = (root / page).read_text("utf-8")
        assert [e.form for e in JUDGES.values() if f"`{e.form}`" not in text] == [], page
