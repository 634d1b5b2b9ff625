"""The host's UNet, text encoder and patches through our adapter; nothing shared is written."""

# ruff: noqa: F811 - importing a fixture and asking for it is no redefinition

from __future__ import annotations

from typing import Any

import pytest
import torch

from fakes.comfy import CONST, V_PREDICTION, Clip, Host, Patcher, fake_model
from fakes.comfy_modules import calculate_weight
from fakes.comfy_pack import Part, frozen, host, model, models, part  # noqa: F401

KEY = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
FULL = "diffusion_model." + KEY


def direct(model: Patcher, x: torch.Tensor, t: int, context: torch.Tensor) -> torch.Tensor:
    """Ask the UNet itself."""
    with torch.inference_mode():
        return model.model.diffusion_model(x, torch.full((len(x),), float(t)), context)


def asked(part: Part, lent: Any, x: torch.Tensor, t: int, context: torch.Tensor) -> torch.Tensor:
    """Ask through the adapter, out of inference mode as the engine does."""
    cond = part("trust_engine.models.conditioning").Conditioning(context)
    return lent(x, torch.full((len(x),), t), cond)


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("t", [1, 500, 981])
def test_predicts_what_the_unet_predicts(part: Part, host: Host, kind: str, t: int) -> None:
    model = fake_model(host, *([V_PREDICTION] if kind == "v" else []))
    lent = part("nodes.host").HostDenoiser(model)
    assert lent.schedule.prediction == kind
    x, context = torch.randn(3, 4, 8, 8), torch.randn(3, 12, 6)
    found = asked(part, lent, x, t, context)
    assert not found.is_inference()
    torch.testing.assert_close(found, direct(model, x, t, context), rtol=1e-3, atol=2e-3)


def test_watches_without_touching(part: Part, host: Host, model: Patcher) -> None:
    before, options = frozen(model), repr(model.model_options)
    lent = part("nodes.host").HostDenoiser(model)
    attention, seen = part("trust_engine.models.attention"), {}
    sites = attention.cross_attention_modules(lent)
    assert list(sites) == [f"{b}.1.transformer_blocks.0.attn2" for b in
                           ("input_blocks.1", "middle_block", "output_blocks.0")]  # fmt: skip
    with attention.watch_inputs(sites, lambda name, x: seen.setdefault(name, x.clone())):
        asked(part, lent, torch.randn(2, 4, 8, 8), 500, torch.randn(2, 12, 6))
    assert {name: tuple(x.shape) for name, x in seen.items()} == dict.fromkeys(sites, (2, 64, 8))
    assert frozen(model) == before and repr(model.model_options) == options


def test_other_attention_patches_and_wrappers_work(part: Part, host: Host, model: Patcher) -> None:
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 12, 6)
    plain = asked(part, part("nodes.host").HostDenoiser(model), x, 500, context)
    changed, calls = model.clone(), []
    changed.set_model_attn2_patch(lambda n, c, v, extra: (n, 2 * c, 2 * v))
    changed.model_options["model_function_wrapper"] = lambda f, told: (
        calls.append(told["cond_or_uncond"]) or f(told["input"], told["timestep"], **told["c"])
    )
    found = asked(part, part("nodes.host").HostDenoiser(changed), x, 500, context)
    assert calls == [[0]]
    torch.testing.assert_close(found, direct(model, x, 500, 2 * context), rtol=1e-3, atol=2e-3)
    assert not torch.allclose(found, plain)


def test_rows_are_split_when_memory_is_short(part: Part, host: Host, model: Patcher) -> None:
    lent = part("nodes.host").HostDenoiser(model)
    x, context = torch.randn(5, 4, 8, 8), torch.randn(5, 12, 6)
    whole = asked(part, lent, x, 500, context)
    lent.rows, host.most_rows = 2, 0
    torch.testing.assert_close(asked(part, lent, x, 500, context), whole)
    assert host.most_rows == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reads_effective_weights(part: Part, host: Host, dtype: torch.dtype) -> None:
    """A LoRA is in them; what is loaded at the moment is not, nor is the state dict believed."""
    import comfy.model_management as mm

    model = fake_model(host, dtype=dtype)
    base = model.model.diffusion_model.state_dict()[KEY].float().clone()
    change = torch.randn(base.shape) / 8
    lora = model.clone()
    lora.add_patches({FULL: ("diff", (change,))}, 0.5)
    other = model.clone()
    other.add_patches({FULL: ("diff", (torch.ones_like(base),))})
    with torch.inference_mode():
        mm.load_models_gpu([other])
    weights = part("nodes.weights").Weights
    assert torch.equal(weights(model).read(KEY), base)
    wanted = calculate_weight(lora.patches[FULL], base.clone(), FULL).to(dtype).float()
    assert torch.equal(weights(lora).read(KEY), wanted)
    assert not weights(lora).read(KEY).is_inference()


def test_reads_weights_that_the_host_converts(part: Part, host: Host, model: Patcher) -> None:
    """Scaled 8-bit weights come with a function; hosts before 2024-10 gave the bare tensor."""
    weights = part("nodes.weights").Weights
    base = weights(model).read(KEY)
    model.convert = lambda weight, inplace=False: weight * 2
    assert torch.equal(weights(model).read(KEY), base * 2)
    model.get_key_patches = lambda prefix: {FULL: [base]}  # type: ignore[method-assign]
    assert torch.equal(weights(model).read(KEY), base)


def test_fingerprint_is_the_engines(part: Part, host: Host, model: Patcher) -> None:
    lent = part("nodes.host").HostDenoiser(model)
    engine = part("trust_engine.diff").fingerprint(lent)
    assert part("nodes.weights").Weights(model).fingerprint() == engine


@pytest.mark.parametrize(
    ("kind", "config", "text"),
    [
        (CONST, {}, "samples by CONST"),
        (V_PREDICTION, {"in_channels": 9}, "inpainting"),
        (V_PREDICTION, {"timesteps": 50}, "another noise schedule"),
    ],
)
def test_refuses_what_it_cannot_do(
    part: Part, host: Host, kind: type, config: dict, text: str
) -> None:
    errors = part("trust_engine.errors")
    with pytest.raises(errors.ModelError, match=text):
        part("nodes.host").HostDenoiser(fake_model(host, kind, **config))


def test_refuses_a_transformer(part: Part, host: Host, model: Patcher) -> None:
    model.model.diffusion_model = torch.nn.Linear(1, 1)  # Flux has no attn2
    with pytest.raises(part("trust_engine.errors").ModelError, match="no cross-attention UNet"):
        part("nodes.host").HostDenoiser(model)


def test_text_is_encoded_as_the_host_does(part: Part, host: Host, model: Patcher) -> None:
    make = part("nodes.text").HostEncoder
    cpu = torch.device("cpu")
    encoder = make(Clip(), model, (64, 64), cpu)
    plain, weighted = encoder.encode(["a gun", "a (gun:1.5)"]).context
    own, _ = Clip().encode_from_tokens(Clip().tokenize("a (gun:1.5)"), return_pooled=True)
    assert torch.equal(weighted, own[0]) and not torch.equal(plain, weighted)
    skipped = make(Clip(skip=1), model, (64, 64), cpu).encode(["a gun"])
    assert not torch.equal(skipped.context[0], plain)
    assert encoder.count_tokens("a red gun") == 3 and encoder.count_tokens("") == 0
    assert encoder.places_of("a red gun", "gun") == [3]
    assert not encoder.encode(["a gun"]).context.is_inference()


def test_sdxl_is_told_pooled_text_and_size(part: Part, host: Host) -> None:
    model = fake_model(host, adm=3)
    encoder = part("nodes.text").HostEncoder(Clip(pooled=2), model, (64, 64), torch.device("cpu"))
    cond = encoder.encode(["a gun", "a cat"])
    assert cond.vector is not None and cond.vector.shape == (2, 3)
    assert cond.vector[0, -1] == pytest.approx(0.064)
    lent = part("nodes.host").HostDenoiser(model)
    assert lent(torch.randn(2, 4, 8, 8), torch.tensor([500, 500]), cond).shape == (2, 4, 8, 8)


def test_no_clip_is_said(part: Part, host: Host, model: Patcher) -> None:
    with pytest.raises(part("trust_engine.errors").ModelError, match="no text encoder"):
        part("nodes.text").HostEncoder(None, model, (64, 64), torch.device("cpu"))


def test_private_unet_is_ordinary_and_equal(part: Part, host: Host, model: Patcher) -> None:
    lora = model.clone()
    lora.add_patches({FULL: ("diff", (torch.ones(8, 6) / 8,))})
    with torch.inference_mode():
        own = part("nodes.private").private_denoiser(lora)
    weights = dict(own.module.named_parameters())
    assert not any(weight.is_inference() for weight in weights.values())
    assert torch.equal(weights[KEY], part("nodes.weights").Weights(lora).read(KEY))
    lent = part("nodes.host").HostDenoiser(lora)
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 12, 6)
    found = asked(part, own, x, 500, context)
    torch.testing.assert_close(found, asked(part, lent, x, 500, context), rtol=1e-3, atol=2e-3)
