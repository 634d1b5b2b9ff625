"""Stage 1: the judge, on renders only, roughened so that it also reads decoded pictures."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from bench.world.pace import Pace
from bench.world.training import RUNS, Stage, autocast, channels_last, pick_device, scene_batch
from trust_engine.demo.judge import ASSETS, Judge
from trust_engine.demo.vocabulary import BACKGROUNDS, JUDGED, STYLES, Scene

STEPS, BATCH, RATE = 2400, 48, 1.5e-3
MORE = 1500  # steps that refresh a judge that is there already
LATTICES = (1, 8)  # any place, and the places that the model learns
WARP = 0.05  # of half the side of a picture, at most about twice that
SMUDGE = 0.12  # of half the range of a colour, likewise
SCORED = 3000  # renders that the accuracies are of
NOTHING_SHARE = 0.12  # scrambled pictures that show no object, so that debris is not a find


def labels(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Encode scenes: objects (b, 30) multi-hot, style (b,), background (b,)."""
    objects = torch.zeros(len(scenes), len(JUDGED))
    for row, scene in zip(objects, scenes, strict=True):
        row[[JUDGED.index(name) for name in scene.objects]] = 1
    style = torch.tensor([STYLES.index(str(scene.style)) for scene in scenes])
    background = torch.tensor([BACKGROUNDS.index(str(scene.background)) for scene in scenes])
    return objects, style, background


def bend(x: Tensor) -> Tensor:
    """Bend outlines and smudge colours softly, as a hand or a small model would."""
    b, _, h, w = x.shape
    still = F.affine_grid(torch.eye(2, 3).expand(b, 2, 3), [b, 3, h, w], align_corners=False)
    shift = soft(torch.randn(b, 2, 7, 7), h, w) * WARP * torch.rand(b, 1, 1, 1)
    bent = F.grid_sample(
        x, still + shift.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )
    return bent + soft(torch.randn(b, 3, 8, 8), h, w) * SMUDGE * torch.rand(b, 1, 1, 1)


def soft(field: Tensor, height: int, width: int) -> Tensor:
    """Enlarge a coarse field smoothly."""
    return F.interpolate(field, (height, width), mode="bicubic", align_corners=False)


def roughen(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Bend, blur, cut a corner off, shift colours and add noise; x (b, 3, h, w) in -1..1."""
    if rng.random() < 0.7:
        x = bend(x)
    if rng.random() < 0.6:
        small = F.interpolate(x, scale_factor=float(rng.uniform(0.22, 0.9)), mode="area")
        x = F.interpolate(small, size=x.shape[-2:], mode="bilinear")
    x = x.clone()
    for picture in x[rng.random(len(x)) < 0.3]:
        i, j = rng.integers(0, 96, 2)
        picture[:, i : i + 32, j : j + 32] = picture[:, :1, :1]
    x = x * (1 + 0.08 * torch.randn(len(x), 3, 1, 1)) + 0.05 * torch.randn(len(x), 3, 1, 1)
    return x + float(rng.uniform(0, 0.08)) * torch.randn_like(x)


def scramble(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Shuffle the 16-pixel tiles of pictures, so that no object is left."""
    tiles = x.unfold(2, 16, 16).unfold(3, 16, 16)
    b, c, rows, columns = tiles.shape[:4]
    tiles = tiles.flatten(2, 3)[:, :, torch.from_numpy(rng.permutation(rows * columns))]
    return tiles.reshape(b, c, rows, columns, 16, 16).transpose(3, 4).reshape(x.shape)


def main() -> None:
    """Train, or resume, keep the averaged weights and print accuracies on unseen renders."""
    torch.manual_seed(2)
    device = pick_device()
    judge, steps = channels_last(Judge(), device), STEPS
    if (RUNS / "judge.pt").exists():
        judge.load_state_dict(torch.load(RUNS / "judge.pt", weights_only=True))
        steps = MORE
    stage = Stage("judge", {"judge": judge}, Pace(steps, RATE))
    rng = np.random.default_rng((2, stage.step))

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        x, scenes = scene_batch(rng, BATCH, JUDGED, LATTICES[step % len(LATTICES)])
        objects, style, background = labels(scenes)
        nothing = torch.from_numpy(rng.random(BATCH) < NOTHING_SHARE)
        x[nothing] = scramble(x[nothing], rng)
        objects[nothing] = 0
        x = roughen(x, rng).to(device, memory_format=torch.channels_last)
        with autocast(device):
            heads = judge(x)
        seen = [head.float().cpu() for head in heads]
        loss = F.binary_cross_entropy_with_logits(seen[0], objects) * 10
        loss = loss + F.cross_entropy(seen[1][~nothing], style[~nothing])
        return loss + F.cross_entropy(seen[2][~nothing], background[~nothing]), {}

    for _ in stage.run(loss_of):
        pass
    weights = stage.averaged("judge")
    save_file(
        {k: v.half().cpu().contiguous() for k, v in weights.items()}, ASSETS / "judge.safetensors"
    )
    stage.log(**accuracy(SCORED))


def accuracy(count: int) -> dict[str, float]:
    """Score the shipped judge on renders of layouts it never saw."""
    from trust_engine.demo.judge import load_judge

    judge, rng = load_judge(), np.random.default_rng(99)
    right = {"objects": 0, "style": 0, "background": 0}
    for _ in range(count // 100):
        x, scenes = scene_batch(rng, 100, JUDGED)
        objects, style, background = labels(scenes)
        verdict = judge.look(x)
        right["objects"] += int(((verdict.objects > 0.5) == objects.bool()).all(1).sum())
        right["style"] += int((verdict.style.argmax(1) == style).sum())
        right["background"] += int((verdict.background.argmax(1) == background).sum())
    return {name: hits / (count // 100 * 100) for name, hits in right.items()}


if __name__ == "__main__":
    main()
