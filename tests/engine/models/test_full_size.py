"""SD 1.5, SD 2.1 and SDXL at full size: names, shapes, counts; slowly, loading and unlearning."""

from __future__ import annotations

import json
import struct
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from toys.tiny_families import Original, build, ldm_tensors
from trust_engine.benchmark.random_models import family_for, random_model
from trust_engine.models.attention import cross_attention_modules
from trust_engine.models.checkpoint import check_names, open_checkpoint
from trust_engine.models.families import KL, MODELS, detect
from trust_engine.models.load import blank_unet, load_model, named_unet
from trust_engine.models.memory import Peak
from trust_engine.models.text_encoders import blank_tower, tower_stock
from trust_engine.models.vae import decoder_stock
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.run import Unlearning

# Parameters of the UNet and of each text encoder, as published; layers; size of a float16 file.
PUBLISHED = {
    "sd15": (859_520_964, (123_060_480,), 16),
    "sd2": (865_910_724, (340_387_840,), 16),
    "sdxl": (2_567_463_684, (123_060_480, 694_659_840), 70),
}
every = pytest.mark.parametrize("name", PUBLISHED)


@cache
def full(name: str) -> Original:
    """Build a family at full size, all layers included, without memory for its weights."""
    family = family_for(name)
    texts = [dict(tower.config) for tower in family.towers]
    if name == "sd2":
        texts[0]["num_hidden_layers"] += 1  # the top layer is in files, and not read
    with torch.device("meta"):
        return build(family.unet.name, family.unet.config, texts, KL)


def full_file(path: Path, name: str) -> Path:
    """Write a checkpoint of zeros in float16; the file has holes and takes no room on the disk."""
    header: dict[str, object] = {}
    end = 0
    for key, tensor in ldm_tensors(full(name)).items():
        begin, end = end, end + 2 * tensor.numel()
        header[key] = {
            "dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@every
def test_parameters_are_as_many_as_published(name: str) -> None:
    unet, towers, layers = PUBLISHED[name]
    family = family_for(name)
    built = blank_unet(family)
    assert sum(p.numel() for p in built.parameters()) == unet
    assert sum(module_name.endswith(".attn2") for module_name, _ in built.named_modules()) == layers
    counts = [sum(p.numel() for p in blank_tower(tower).parameters()) for tower in family.towers]
    assert counts == list(towers)


@every
def test_a_file_of_full_size_is_recognised(name: str, tmp_path: Path) -> None:
    """Every name and shape finds its place, and nothing is left over."""
    with open_checkpoint(full_file(tmp_path / "m.safetensors", name)) as model:
        family = detect("m", {key: stored.shape for key, stored in model.unet.items()})
        assert family is family_for(name)
        check_names(blank_unet(family), named_unet(model, family), "UNet")
        for tower in family.towers:
            stock = tower_stock(model, tower)
            module = blank_tower(tower)
            expected = {key.removeprefix("text_model.") for key in module.state_dict()}
            assert {key for key in expected if not key.endswith("position_ids")} == set(stock)
        decoder = decoder_stock(model, family)
        kept = ("decoder.", "post_quant_conv.")
        theirs = {k: tuple(t.shape) for k, t in full(name).vae.state_dict().items()}
        theirs = {key: shape for key, shape in theirs.items() if key.startswith(kept)}
        assert {key: stored.shape for key, stored in decoder.items()} == theirs


def test_no_two_families_measure_alike() -> None:
    assert len({family.signature for family in MODELS}) == len(MODELS)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@every
def test_loading_takes_little_more_than_the_weights(name: str, tmp_path: Path) -> None:
    path = full_file(tmp_path / "m.safetensors", name)
    load_model("demo", "cpu")  # what libraries take once
    peak = Peak(torch.device("cpu"))
    model = load_model(str(path), "cpu")
    modules = [model.denoiser.module, model.decoder]
    modules += getattr(model.encoder, "modules", None) or [model.encoder.tower]  # type: ignore[union-attr]
    held = sum(p.numel() * p.element_size() for m in modules for p in m.parameters())
    assert held < path.stat().st_size
    largest = max(p.numel() * p.element_size() for m in modules for p in m.parameters())
    assert peak.extra < held + 2 * largest + 300e6
    assert model.family == family_for(name).unet.name


@pytest.mark.slow
@every
def test_a_model_of_full_size_unlearns(name: str) -> None:
    model = random_model(name, torch.device("cpu"), latent_size=(8, 8))
    spec = UnlearnSpec(
        (ConceptSpec(("gun",), preserve=("a cat",)),),
        steps=1, trajectory_steps=1, budget=0.01, passes=6,
    )  # fmt: skip
    run = Unlearning(model.lend(), spec)
    assert list(run)
    assert run.passes == 6
    assert run.backward == 0
    layers = cross_attention_modules(model.denoiser)
    assert {key.rsplit(".to_", 1)[0] for key in run.diff.offsets} == set(layers)
    assert len(layers) == PUBLISHED[name][2]
