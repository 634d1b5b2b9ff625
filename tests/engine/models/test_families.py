"""Full-size families at tiny widths: loaded from files, they compute what their originals do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from toys.tiny import frozen_bits
from toys.tiny_families import (
    NAMES,
    TEXTS,
    UNET,
    VAE,
    Original,
    folder,
    install,
    ldm_tensors,
    original,
    single_file,
)
from trust_engine.errors import ModelError
from trust_engine.models.attention import cross_attention_modules
from trust_engine.models.contract import Conditioning, compute_dtype, scaled_linear
from trust_engine.models.demo_clip import load_tokenizer
from trust_engine.models.load import load_model
from trust_engine.models.sampler import SamplerSettings
from trust_engine.models.schedule import zero_terminal
from trust_engine.models.unet_keys import projection_of
from trust_engine.spec import Ablation, ConceptSpec, UnlearnSpec
from trust_engine.unlearn import end_to_end
from trust_engine.unlearn.run import Unlearning

every = pytest.mark.parametrize("name", NAMES)
PROMPTS = ["a gun on a table", "", "word " * 100]


@pytest.fixture(autouse=True)
def _tiny_families(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


def ids(pad: int) -> Tensor:
    """Tokenize as the originals do, each tower with its own padding."""
    tokenizer = load_tokenizer()
    rows = []
    for prompt in PROMPTS:
        row = tokenizer(prompt, truncation=True, max_length=77).input_ids
        rows.append(row + [pad] * (77 - len(row)))
    return torch.tensor(rows)


def text_states(model: Original) -> tuple[Tensor, Tensor | None]:
    """Encode PROMPTS as the family's own pipeline does: states, and the pooled text of SDXL."""
    if model.name == "sd1":
        return model.texts[0](ids(49_407)).last_hidden_state, None
    if model.name == "sd2":
        full = model.texts[0]
        norm = getattr(full, "text_model", full).final_layer_norm
        return norm(full(ids(0), output_hidden_states=True).hidden_states[-2]), None
    one = model.texts[0](ids(49_407), output_hidden_states=True)
    two = model.texts[1](ids(0), output_hidden_states=True)
    return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), two.text_embeds


def predict(model: Original, x: Tensor, t: Tensor) -> Tensor:
    """Predict as the family's own pipeline does, size and crop given as numbers."""
    states, pooled = text_states(model)
    more: dict[str, Any] = {}
    if pooled is not None:
        numbers = torch.tensor([[64, 64, 0, 0, 64, 64]] * len(x))
        more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": numbers}
    return model.unet(x, t, encoder_hidden_states=states, **more).sample


@every
def test_a_single_file_computes_what_its_original_does(name: str, tmp_path: Path) -> None:
    theirs = original(name)
    ours = load_model(str(single_file(tmp_path / "m", theirs)), "cpu")
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([1, 500, 981])
    with torch.no_grad():
        cond, (states, pooled) = ours.encoder.encode(PROMPTS), text_states(theirs)
        assert torch.equal(cond.context, states)
        assert (cond.vector is None) == (pooled is None)
        torch.testing.assert_close(ours.denoiser(x, t, cond), predict(theirs, x, t))
        picture = theirs.vae.decode(x / {"sdxl": 0.13025}.get(name, 0.18215)).sample
        torch.testing.assert_close(ours.decoder(x), picture)
    assert ours.family == name
    assert ours.latent_size == (8, 8)


@every
def test_a_folder_is_the_same_model_as_the_file(name: str, tmp_path: Path) -> None:
    one = load_model(str(single_file(tmp_path / "m", original(name))), "cpu")
    two = load_model(str(folder(tmp_path / "f", original(name))), "cpu")
    assert frozen_bits(one.denoiser.module) == frozen_bits(two.denoiser.module)
    assert frozen_bits(one.decoder) == frozen_bits(two.decoder)
    here, there = one.encoder.encode(PROMPTS), two.encoder.encode(PROMPTS)
    assert torch.equal(here.context, there.context)


def test_a_folder_in_shards_and_a_float16_variant_are_the_same_model(tmp_path: Path) -> None:
    whole = load_model(str(folder(tmp_path / "f", original("sd1"))), "cpu")
    unet = tmp_path / "f" / "unet"
    weights = load_file(unet / "diffusion_pytorch_model.safetensors")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    halves = {"one.safetensors": list(weights)[::2], "two.safetensors": list(weights)[1::2]}
    for file, names in halves.items():
        save_file({name: weights[name] for name in names}, unet / file)
    index = {"weight_map": {name: file for file, names in halves.items() for name in names}}
    path = unet / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps(index))
    parts = load_model(str(tmp_path / "f"), "cpu")
    assert frozen_bits(parts.denoiser.module) == frozen_bits(whole.denoiser.module)
    path.unlink()
    half = {name: weight.half() for name, weight in weights.items()}
    save_file(half, unet / "diffusion_pytorch_model.fp16.safetensors")
    variant = load_model(str(tmp_path / "f"), "cpu")
    assert {w.dtype for w in variant.denoiser.module.parameters()} == {torch.float16}


@every
def test_half_precision_stays_in_memory_and_computes_in_float32(name: str, tmp_path: Path) -> None:
    path = single_file(tmp_path / "m", original(name), torch.float16)
    ours, theirs = load_model(str(path), "cpu"), original(name).half()
    weights = [*ours.denoiser.module.parameters(), *ours.decoder.parameters()]
    assert {w.dtype for w in weights} == {torch.float16}
    assert compute_dtype(ours.denoiser.module) == torch.float32
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([1, 500, 981])
    with torch.no_grad():
        cond = ours.encoder.encode(PROMPTS)
        assert torch.equal(cond.context, text_states(theirs)[0])
        torch.testing.assert_close(ours.denoiser(x, t, cond), predict(theirs, x, t))


@every
@pytest.mark.parametrize("engine", ["local", "global"])
def test_unlearns(name: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "BATCH", 2)  # a family's layers are met in any batch
    path = single_file(tmp_path / "m", original(name), torch.float16)
    model = load_model(str(path), "cpu")
    before = frozen_bits(model.denoiser.module)
    layers = cross_attention_modules(model.denoiser)
    spec = UnlearnSpec(
        (ConceptSpec(("gun",), preserve=("a cat",)),),
        steps=1, trajectory_steps=1, budget=0.05, xi=1.0, passes=8, engine=engine,
        objective="csr", ablation=Ablation(hessian="finite"),
    )  # fmt: skip
    run = Unlearning(model.lend(), spec)
    assert list(run)
    assert run.diff.changed > 0
    assert len(layers) == {"sd1": 16, "sd2": 16, "sdxl": 28}[name]
    assert {key.rsplit(".to_", 1)[0] for key in run.diff.offsets} == set(layers)
    assert all(projection_of(key) for key in run.diff.offsets)
    assert frozen_bits(model.denoiser.module) == before


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_draws(name: str, tmp_path: Path) -> None:
    model = load_model(str(single_file(tmp_path / "m", original(name), v_pred=torch.ones(1))))
    (picture,) = model.generate(["a cat"], [1], SamplerSettings(2))
    assert picture.shape == (1, 3, 64, 64)
    assert bool(picture.isfinite().all())


@every
def test_diffusers_own_converter_reads_the_files_of_these_tests(name: str) -> None:
    """So that the names here are the public ones."""
    model, tensors = original(name), ldm_tensors(original(name))
    back = convert_ldm_unet_checkpoint(dict(tensors), dict(model.unet.config))
    assert frozen({**back}) == frozen(model.unet.state_dict())
    vae = {k: t for k, t in tensors.items() if k.startswith(VAE)}
    assert frozen(convert_ldm_vae_checkpoint(vae, dict(model.vae.config))) == frozen(
        model.vae.state_dict()
    )


def frozen(weights: dict[str, Tensor]) -> dict[str, bytes]:
    """Spell weights out; a convolution of one pixel is the linear layer it is."""
    return {key: weight.contiguous().numpy().tobytes() for key, weight in weights.items()}


def spread(model: Original, std: float) -> Tensor:
    """Make the bias that tells what SD 2.x predicts."""
    key = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
    bias = model.unet.state_dict()[key]
    return torch.linspace(-1, 1, len(bias)) * std * 3**0.5


TELLS = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.mark.parametrize(
    ("name", "extra", "prediction"),
    [
        ("sd1", {}, "eps"),
        ("sd2", {TELLS: spread(original("sd2"), 0.03)}, "eps"),
        ("sd2", {TELLS: spread(original("sd2"), 0.2)}, "v"),
        (
            "sd2",
            {TELLS: spread(original("sd2"), 0.2), "metadata": {"modelspec.predict_key": "epsilon"}},
            "eps",
        ),
        ("sd2", {"metadata": {"modelspec.prediction_type": "v"}}, "v"),
        ("sdxl", {}, "eps"),
        ("sdxl", {"v_pred": torch.ones(1)}, "v"),
    ],
)
def test_what_the_unet_predicts(
    name: str, extra: dict[str, Any], prediction: str, tmp_path: Path
) -> None:
    model = load_model(str(single_file(tmp_path / "m", original(name), **extra)), "cpu")
    assert model.denoiser.schedule.prediction == prediction
    assert torch.equal(model.denoiser.schedule.alphas, scaled_linear().alphas)


def test_a_folder_says_what_its_unet_predicts(tmp_path: Path) -> None:
    model = load_model(str(folder(tmp_path / "f", original("sd2"), "v_prediction")), "cpu")
    assert model.denoiser.schedule.prediction == "v"


def test_zero_terminal_schedule_is_diffusers_own(tmp_path: Path) -> None:
    extra = {"v_pred": torch.ones(1), "ztsnr": torch.ones(1)}
    model = load_model(str(single_file(tmp_path / "m", original("sdxl"), **extra)), "cpu")
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    theirs = EulerDiscreteScheduler(**settings, rescale_betas_zero_snr=True).alphas_cumprod
    torch.testing.assert_close(model.denoiser.schedule.alphas[:-1], theirs[:-1])
    assert 0 < float(zero_terminal(scaled_linear()).alphas[-1]) < 1e-7


def test_without_a_vae_it_unlearns_but_does_not_draw(tmp_path: Path) -> None:
    model = load_model(str(single_file(tmp_path / "m", original("sd1"), **{VAE: None})), "cpu")
    with pytest.raises(ModelError, match="holds no VAE"):
        list(model.generate(["a cat"], [1], SamplerSettings(1)))


def test_size_and_crop_reach_the_unet(tmp_path: Path) -> None:
    model = load_model(str(single_file(tmp_path / "m", original("sdxl"))), "cpu")
    cond = model.encoder.encode(["a cat"])
    assert cond.vector is not None
    assert cond.vector.shape == (1, TEXTS["sdxl"][1]["hidden_size"] + 6 * 256)
    other = Conditioning(cond.context, cond.vector.clone())
    assert other.vector is not None
    other.vector[:, -256:] += 1
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        one, two = model.denoiser(x, t, cond), model.denoiser(x, t, other)
    assert not torch.equal(one, two)
    assert replace(cond, vector=None).vector is None
