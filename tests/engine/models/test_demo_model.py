"""The model, judge and CLIP that ship: their contract, and that each knows its world."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from bench.world.pack import checkpoint, unpack
from bench.world.scenes import draw, random_scene
from bench.world.train_judge import labels, scramble
from bench.world.training import to_tensor
from trust_engine.audit import audit, plan
from trust_engine.demo.judge import Judge, load_judge
from trust_engine.demo.vocabulary import JUDGED, OBJECTS, Scene, caption
from trust_engine.diff import SparseOffset, WeightDiff, fingerprint
from trust_engine.models.demo_clip import load_clip, tokenize
from trust_engine.models.load import DEMO, LoadedModel, load_model
from trust_engine.models.sampler import SamplerSettings

FEW = SamplerSettings(steps=2, cfg=4.0)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("demo", "cpu")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


def renders(count: int, seed: int) -> tuple[Tensor, list[Scene]]:
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, JUDGED) for _ in range(count)]
    return to_tensor(np.stack([draw(scene, rng) for scene in scenes])), scenes


def test_checkpoint_has_the_layout_of_sd1() -> None:
    with safe_open(str(DEMO), "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        dtypes = {file.get_slice(key).get_dtype() for key in shapes}
    assert DEMO.stat().st_size <= 40_000_000
    assert dtypes == {"F16"}
    assert sum(".attn2.to_" in key and "to_out" not in key for key in shapes) == 21
    assert shapes["model.diffusion_model.input_blocks.0.0.weight"] == (64, 4, 3, 3)
    words = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    assert shapes[words] == (49_408, 96)
    assert shapes["first_stage_model.taesd_encoder.0.weight"] == (64, 3, 3, 3)
    assert shapes["first_stage_model.taesd_decoder.1.weight"] == (64, 4, 3, 3)


def test_packing_undoes_unpacking(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """What ships is enough to train on from a fresh clone."""
    monkeypatch.setattr("bench.world.pack.RUNS", tmp_path)
    unpack()
    stages = (tmp_path / f"{name}.pt" for name in ("unet", "clip", "autoencoder"))
    packed = checkpoint(*(torch.load(stage, weights_only=True) for stage in stages))
    with safe_open(str(DEMO), "pt") as file:
        assert set(packed) == set(file.keys())
        for key, weight in packed.items():
            assert torch.equal(weight, file.get_tensor(key)), key


def test_judge_reads_unseen_renders(judge: Judge) -> None:
    x, scenes = renders(200, 314)
    objects, style, background = labels(scenes)
    verdict = judge.look(x)
    assert ((verdict.objects > 0.5) == objects.bool()).all(1).float().mean() >= 0.97
    assert (verdict.style.argmax(1) == style).float().mean() >= 0.97
    assert (verdict.background.argmax(1) == background).float().mean() >= 0.97


def test_judge_finds_nothing_in_debris(judge: Judge) -> None:
    x, _ = renders(64, 315)
    verdict = judge.look(scramble(x, np.random.default_rng(0)))
    assert (verdict.objects > 0.5).any(1).float().mean() <= 0.05


def test_synonyms_lie_together() -> None:
    clip = load_clip()
    words = [(name, word) for name, others in OBJECTS.items() for word in (name, *others)]
    with torch.no_grad():
        vectors = clip.embed_text(tokenize([caption([word]) for _, word in words]))
    cosine = vectors @ vectors.T - 2 * torch.eye(len(words))
    nearest = cosine.argmax(1)
    assert all(words[int(j)][0] == words[i][0] for i, j in enumerate(nearest))


def test_clip_tells_true_captions_from_false() -> None:
    clip = load_clip()
    x, scenes = renders(60, 316)
    known = [i for i, scene in enumerate(scenes) if set(scene.objects) <= set(OBJECTS)]
    texts = [caption(scenes[i].objects, scenes[i].background, scenes[i].style) for i in known]
    with torch.no_grad():
        scores = clip.log_odds(tokenize(texts), x[known])
    assert (scores.argmax(1) == torch.arange(len(known))).float().mean() >= 0.8


def test_same_seed_same_picture(model: LoadedModel) -> None:
    prompts = ["a cat", "a gun on a red background"]
    first, again, other = (
        torch.cat(list(model.generate(prompts, seeds, FEW))) for seeds in ((1, 2), (1, 2), (3, 4))
    )
    assert first.shape == (2, 3, 128, 128)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_audit_has_its_schema_and_restores_the_model(model: LoadedModel, judge: Judge) -> None:
    before = {k: v.clone() for k, v in model.denoiser.module.state_dict().items()}
    key = "middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    weight = model.denoiser.module.get_parameter(model.denoiser.parameter_name(key))
    offset = {key: SparseOffset.of(torch.ones_like(weight))}
    diff = WeightDiff(offset, {"base": fingerprint(model.denoiser)})
    small = replace(model, latent_size=(8, 8))  # fewer pixels and steps: the same report
    report = audit(small, judge, [(diff, 1.0)], "gun", 1, settings=replace(FEW, steps=1))
    figures = {"ua", "ira", "cra_style", "cra_background", "synonyms", "per_object"}
    assert figures | {"untouched", "cost"} <= set(report)
    assert set(report["untouched"]) == figures
    assert set(report["ua"]) == {"value", "n", "low", "high"}
    assert set(report["per_object"]) == set(OBJECTS) - {"gun"}
    assert report["cost"]["unet_passes"] == 2 * (12 + 12 + 27) * 2
    json.dumps(report)
    after = model.denoiser.module.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_audit_seeds_and_prompts_do_not_repeat() -> None:
    shots = plan("gun", 3, 0)
    every = [*shots.target, *shots.synonyms, *shots.others]
    assert len({(shot.seed) for shot in every}) == len(every)
    assert all("gun" not in shot.prompt for shot in (*shots.synonyms, *shots.others))
