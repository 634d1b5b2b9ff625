"""Metrics that compare pictures: LPIPS by its definition, sets of pictures, CLIP from one file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from trust_engine.audit.judges.clip import ClipJudge
from trust_engine.audit.judges.clip_files import load_clip_model
from trust_engine.audit.metrics.images import check_eye, distances, load_eye, set_distance
from trust_engine.audit.metrics.lpips import Lpips
from trust_engine.errors import ModelError, SpecError

ALEX = (("1.0", 3, 64, 11), ("2.3", 64, 192, 5), ("3.6", 192, 384, 3),
        ("4.8", 384, 256, 3), ("5.10", 256, 256, 3))  # fmt: skip


@pytest.fixture(scope="module")
def alex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an LPIPS with random weights under the package's names."""
    chance, state = torch.Generator().manual_seed(0), {}
    for k, (name, fed, made, size) in enumerate(ALEX):
        weight = torch.randn(made, fed, size, size, generator=chance) / (fed * size * size) ** 0.5
        state[f"net.slice{name}.weight"] = weight
        state[f"net.slice{name}.bias"] = 0.1 * torch.randn(made, generator=chance)
        state[f"lins.{k}.model.1.weight"] = torch.rand(1, made, 1, 1, generator=chance)
    path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    save_file(state, str(path))
    return path


def by_definition(eye: Lpips, a: Tensor, b: Tensor) -> Tensor:
    """Compute LPIPS with torch's own layers (Zhang et al. 2018, equation 1)."""

    def taps(x: Tensor) -> list[Tensor]:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x, found = (x - shift.view(3, 1, 1)) / scale.view(3, 1, 1), []
        for name, _, _, size in ALEX:
            stride, padding = (4, 2) if size == 11 else (1, size // 2)
            if name in ("2.3", "3.6"):
                x = F.max_pool2d(x, 3, 2)
            w, bias = (eye.weights[f"net.slice{name}.{part}"] for part in ("weight", "bias"))
            x = F.conv2d(x, w, bias, stride, padding).relu()
            found.append(F.normalize(x, dim=1))
        return found

    total = torch.zeros(len(a))
    for k, (one, other) in enumerate(zip(taps(a), taps(b), strict=True)):
        total += (
            ((one - other).square() * eye.weights[f"lin{k}.model.1.weight"]).sum(1).mean((1, 2))
        )
    return total


def test_lpips_is_what_its_definition_says(alex: Path) -> None:
    eye, (a, b) = Lpips(alex), torch.rand(2, 3, 3, 96, 80) * 2 - 1
    found = torch.tensor(distances(eye.features(a), eye.features(b)))
    torch.testing.assert_close(found, by_definition(eye, a, b), rtol=1e-4, atol=1e-6)
    assert distances(eye.features(a), eye.features(a)) == [0.0] * 3
    assert eye.name == "lpips-alex"


def test_lpips_shrinks_large_pictures(alex: Path) -> None:
    eye = Lpips(alex)
    assert eye.features(torch.rand(1, 3, 512, 384)).shape == eye.features(
        torch.rand(1, 3, 256, 192)
    ).shape  # fmt: skip


def test_what_is_no_lpips_is_refused(tmp_path: Path, alex: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"net.slice1.0.weight": torch.zeros(64, 3, 11, 11)}, str(path))
    with pytest.raises(ModelError, match="is not LPIPS"):
        Lpips(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load_eye(f"lpips:{path}")
    for text in ("lpips", "lpips:", "vgg:x", f"dino:{alex}"):
        with pytest.raises(SpecError, match="is not there"):
            check_eye(text)


def test_distances_of_unit_vectors_are_one_minus_cosine() -> None:
    a, b = (F.normalize(torch.randn(5, 7), dim=1) for _ in range(2))
    expected = 1 - (a * b).sum(1)
    torch.testing.assert_close(torch.tensor(distances(list(a), list(b))), expected)
    turned = 1 - (a * a.roll(-1, 0)).sum(1)
    torch.testing.assert_close(torch.tensor(distances(a, a, shift=1)), turned)
    assert distances([], []) == []


def test_sets_of_one_kind_are_no_distance_apart_and_others_are() -> None:
    """Unbiased: over many draws the mean is 0, though pictures are few and directions many."""
    chance = torch.Generator().manual_seed(0)

    def draw(shift: float) -> list[Tensor]:
        rows = torch.randn(20, 64, generator=chance)
        rows[:, 0] += shift
        return list(F.normalize(rows, dim=1))

    same = [set_distance(draw(0), draw(0)) for _ in range(60)]
    mean = sum(f["value"] for f in same) / len(same)
    spread = torch.tensor([f["value"] for f in same]).std()
    assert abs(mean) < 3 * spread / len(same) ** 0.5
    inside = sum(f["low"] <= 0 <= f["high"] for f in same)
    assert inside >= 50  # 95 % of 60 are 57
    other = set_distance(draw(0), draw(8))
    assert other["low"] > 0 and other["value"] > 10 * spread


def test_too_few_pictures_or_no_unit_vectors_give_no_set_distance() -> None:
    few = list(F.normalize(torch.randn(4, 3), dim=1))
    assert set_distance(few, few)["value"] is None
    long = list(3 * F.normalize(torch.randn(20, 3), dim=1))
    assert set_distance(long, long)["value"] is None


def test_clip_of_one_file_is_the_clip_of_a_folder(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    torch.manual_seed(0)
    small = {"num_hidden_layers": 2, "projection_dim": 8, "hidden_act": "gelu"}
    text = CLIPTextConfig(
        **small, hidden_size=128, intermediate_size=64, num_attention_heads=2,
        bos_token_id=49406, eos_token_id=49407, vocab_size=49408,
    )  # fmt: skip
    look = CLIPVisionConfig(
        **small, hidden_size=64, intermediate_size=32, num_attention_heads=1, image_size=32,
        patch_size=16,
    )  # fmt: skip
    config = CLIPConfig(text_config=text.to_dict(), vision_config=look.to_dict(), projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path, safe_serialization=True)
    pixels = torch.rand(2, 3, 40, 40) * 2 - 1
    groups = {"object": ("gun", "cat")}
    folder, file = (ClipJudge(p, groups) for p in (tmp_path, tmp_path / "model.safetensors"))
    torch.testing.assert_close(folder.features(pixels), file.features(pixels))
    torch.testing.assert_close(
        folder.align(["a gun", "x"], pixels), file.align(["a gun", "x"], pixels)
    )
    half = {n: w for n, w in file.model.state_dict().items() if n.startswith("vision_model")}
    save_file(half, str(tmp_path / "vision.safetensors"))
    with pytest.raises(ModelError, match="no text and vision tower together"):
        load_clip_model(tmp_path / "vision.safetensors")
