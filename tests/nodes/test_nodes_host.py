"""The host's UNet, text encoder and patches through our adapter; nothing shared is written."""

from __future__ import annotations

import gc
import re
import weakref
from typing import Any

import pytest
import torch

from fakes.comfy import CONST, V_PREDICTION, Clip, Host, Patcher, fake_model
from fakes.comfy_modules import calculate_weight
from fakes.comfy_pack import Part, frozen, unlearn

KEY = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
FULL = "diffusion_model." + KEY


def direct(model: Patcher, x: torch.Tensor, t: int, context: torch.Tensor) -> torch.Tensor:
    """Ask the UNet itself."""
    with torch.inference_mode():
        return model.model.diffusion_model(x, torch.full((len(x),), float(t)), context)


def asked(part: Part, lent: Any, x: torch.Tensor, t: int, context: torch.Tensor) -> torch.Tensor:
    """Ask through the adapter, out of inference mode as the engine does."""
    cond = part("trust_engine.models.contract").Conditioning(context)
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


@pytest.mark.parametrize("whole", [False, True], ids=["host's UNet", "private UNet"])
def test_what_is_lent_goes_without_garbage_collection(
    part: Part, host: Host, model: Patcher, whole: bool
) -> None:
    """A host loses a model for good whose clones die in one collection (see nodes/host.py)."""
    gc.collect()
    gc.disable()
    try:
        lent = part("nodes.lending").lend(model, Clip(), 64, whole)
        cond = lent.encoder.encode(["a gun", "a cat"])
        lent.host(torch.randn(2, 4, 8, 8), torch.full((2,), 500), cond)
        dead = weakref.ref(lent.host.patcher)
        del lent, cond
        assert dead() is None
    finally:
        gc.enable()


def test_rows_are_split_when_memory_is_short(part: Part, host: Host, model: Patcher) -> None:
    lent = part("nodes.host").HostDenoiser(model)
    x, context = torch.randn(5, 4, 8, 8), torch.randn(5, 12, 6)
    whole = asked(part, lent, x, 500, context)
    lent.rows, host.most_rows = 2, 0
    torch.testing.assert_close(asked(part, lent, x, 500, context), whole)
    assert host.most_rows == 2


@pytest.mark.parametrize("reclaimable", [0.0, 1e9])
def test_rows_follow_what_the_host_can_free(
    part: Part, host: Host, model: Patcher, reclaimable: float
) -> None:
    """A host that fills the memory on purpose says through its patcher what it would give back."""
    lent = part("nodes.host").HostDenoiser(model)
    host.free, host.reclaimable, host.most_rows = 1.0, reclaimable, 0
    asked(part, lent, torch.randn(8, 4, 8, 8), 500, torch.randn(8, 12, 6))
    assert host.most_rows == (8 if reclaimable else 1)


def test_rows_are_counted_after_the_host_has_made_room(
    part: Part, host: Host, model: Patcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as mm

    load = mm.load_models_gpu

    def freeing(patchers: list, memory_required: float = 0, **more: Any) -> None:
        load(patchers, memory_required, **more)
        host.free = max(host.free, 2 * memory_required)  # another model's

    monkeypatch.setattr(mm, "load_models_gpu", freeing)
    lent = part("nodes.host").HostDenoiser(model)
    host.free, host.most_rows = 1.0, 0
    asked(part, lent, torch.randn(8, 4, 8, 8), 500, torch.randn(8, 12, 6))
    assert host.most_rows == 8


def test_no_state_dict_for_each_weight(part: Part, host: Host, model: Patcher) -> None:
    """Making one takes SDXL seconds; there is one for each object that asks, not for each name."""
    lent, host.state_dicts = part("nodes.host").HostDenoiser(model), 0
    list(lent.module.named_parameters())
    part("trust_engine.diff").fingerprint(lent)
    for site in lent.sites.values():
        assert site.to_q.weight.shape and site.to_out[0].bias is not None
    assert host.state_dicts == 0
    part("nodes.private_unet").private_denoiser(model)
    part("nodes.weights").Weights(model).fingerprint()
    assert host.state_dicts == 2
    after = unlearn(part, model)[0]
    host.state_dicts = 0
    part("nodes.changes").between_models(model, after)
    assert host.state_dicts == 2


def test_messages_go_to_who_asked_or_to_nobody(part: Part, host: Host, model: Patcher) -> None:
    """The host sends to everybody what has no receiver, as for prompts by an API call."""
    host.client = None
    unlearn(part, model)
    part("nodes.progress").tell("7", kind="finished", concept="gun")
    assert not host.events
    host.client = "browser"
    part("nodes.progress").tell("7", kind="finished", concept="gun")
    assert len(host.events) == 1


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


def test_reads_weights_that_the_host_converts(
    part: Part, host: Host, model: Patcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled 8-bit weights come with a function; hosts before 2024-10 gave the bare tensor."""
    weights = part("nodes.weights").Weights
    base = weights(model).read(KEY)
    model.model.convert = lambda weight, inplace=False: weight * 2
    assert torch.equal(weights(model).read(KEY), base * 2)
    import comfy.model_patcher

    monkeypatch.delattr(comfy.model_patcher, "get_key_weight")
    model.get_key_patches = lambda prefix: {FULL: [base]}  # type: ignore[method-assign]
    assert torch.equal(weights(model).read(KEY), base)


class Few:
    """A weight of few bits and a scale, as recent hosts have them."""

    def __init__(self, weight: torch.Tensor, share: int) -> None:
        self.weight, self.shape, self.dtype = weight, weight.shape, torch.bfloat16
        self._qdata = torch.zeros(weight.numel() // share, dtype=torch.int8)
        self._layout_cls = "TensorCoreSomeLayout"

    def detach(self) -> Few:
        return self

    def numel(self) -> int:
        return self.weight.numel()


def stored_so(monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    """Let the host store cross-attention weights in another way."""
    import comfy.model_patcher

    own = comfy.model_patcher.get_key_weight

    def find(model: Any, key: str) -> tuple:
        weight, *_ = own(model, key)
        if "attn2.to_" not in key:
            return weight, None, None
        return how(weight), None, lambda stored: stored.weight

    monkeypatch.setattr(comfy.model_patcher, "get_key_weight", find)


def test_quantised_weights_are_read_and_said(
    part: Part, host: Host, model: Patcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = part("nodes.weights").Weights(model).read(KEY)
    stored_so(monkeypatch, lambda weight: Few(weight, 1))
    assert torch.equal(part("nodes.weights").Weights(model).read(KEY), base)
    lent = part("nodes.host").HostDenoiser(model)
    assert lent.storage.startswith("this model is quantised (Some): ")


@pytest.mark.parametrize(
    ("how", "text"),
    [
        (lambda w: Few(w, 2), "this model is quantised (Some): its steps are larger than what"),
        (lambda w: w.to(torch.uint8), "this model's weights are stored as integers, which cannot"),
    ],
)
def test_weights_that_cannot_be_changed_are_refused_before_work(
    part: Part, host: Host, model: Patcher, monkeypatch: pytest.MonkeyPatch, how: Any, text: str
) -> None:
    errors, diff = part("trust_engine.errors"), unlearn(part, model)[1]
    passes = host.passes
    stored_so(monkeypatch, how)
    with pytest.raises(errors.ModelError) as refused:
        unlearn(part, model)
    assert str(refused.value).startswith(text)
    assert str(refused.value).endswith("load the model's fp16 or bf16 file instead")
    with pytest.raises(errors.ModelError, match="fp16 or bf16 file instead"):
        part("nodes.diffs").TrustApplyDiff().apply(model, diff, 1.0)
    assert host.passes == passes


def test_what_a_host_keeps_beside_the_weights_is_none(
    part: Part, host: Host, model: Patcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, state = part("nodes.weights").Weights(model).shapes, model._state()
    beside = {FULL + "_scale": torch.ones(()), FULL.replace("weight", "comfy_quant"): state[FULL]}
    monkeypatch.setattr(model, "_state", lambda: {**state, **beside})
    assert part("nodes.weights").Weights(model).shapes == own
    part("nodes.private_unet").private_denoiser(model)


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
    make = part("nodes.text_encoder").HostEncoder
    cpu = torch.device("cpu")
    encoder = make(Clip(), model, (64, 64), cpu)
    plain, weighted = encoder.with_syntax().encode(["a gun", "a (gun:1.5)"]).context
    own, _ = Clip().encode_from_tokens(Clip().tokenize("a (gun:1.5)"), return_pooled=True)
    assert torch.equal(weighted, own[0]) and not torch.equal(plain, weighted)
    skipped = make(Clip(skip=1), model, (64, 64), cpu).encode(["a gun"])
    assert not torch.equal(skipped.context[0], plain)
    assert encoder.count_tokens("a red gun") == 3 and encoder.count_tokens("") == 0
    assert encoder.places_of("a red gun", "gun") == [3]
    assert not encoder.encode(["a gun"]).context.is_inference()


def test_words_are_encoded_as_they_are_spelled(part: Part, host: Host, model: Patcher) -> None:
    make = part("nodes.text_encoder").HostEncoder
    encoder = make(Clip(), model, (64, 64), torch.device("cpu"))
    told = encoder.with_syntax()
    for text in ("a tracer (overwatch)", "a (gun:1.5)", "embedding:foo", "an embedding:foo"):
        spelled, read = encoder.encode([text]).context[0], told.encode([text]).context[0]
        assert not torch.equal(spelled, read)
    assert encoder.count_tokens("an embedding:foo") == 3 and told.count_tokens("embedding:foo") == 2
    assert torch.equal(encoder.encode(["a gun"]).context, told.encode(["a gun"]).context)


def test_an_embedding_is_found_by_its_vectors(part: Part, host: Host, model: Patcher) -> None:
    make = part("nodes.text_encoder").HostEncoder
    encoder = make(Clip(), model, (64, 64), torch.device("cpu"), syntax=True)
    assert encoder.places_of("a red embedding:foo here", "embedding:foo") == [3, 4]
    assert encoder.places_of("a red gun", "embedding:foo") == []


def test_literal_prompts_keep_their_tokens(part: Part) -> None:
    from trust_engine.models.demo_clip import load_tokenizer

    literal, tokens = part("nodes.syntax").literal, load_tokenizer()
    for text in ("embedding:foo", "an Embedding:foo-bar", "x embedding::y", "a gun", "a: b"):
        assert tokens(literal(text)).input_ids == tokens(text).input_ids
        assert not re.search(r"(^|\s)embedding:", literal(text))
    assert literal("((x:1.2))") == r"\(\(x:1.2\)\)"


def test_sdxl_is_told_pooled_text_and_size(part: Part, host: Host) -> None:
    model = fake_model(host, adm=3)
    encoder = part("nodes.text_encoder").HostEncoder(
        Clip(pooled=2), model, (64, 64), torch.device("cpu")
    )
    cond = encoder.encode(["a gun", "a cat"])
    assert cond.vector is not None and cond.vector.shape == (2, 3)
    assert cond.vector[0, -1] == pytest.approx(0.064)
    lent = part("nodes.host").HostDenoiser(model)
    assert lent(torch.randn(2, 4, 8, 8), torch.tensor([500, 500]), cond).shape == (2, 4, 8, 8)


def test_no_clip_is_said(part: Part, host: Host, model: Patcher) -> None:
    with pytest.raises(part("trust_engine.errors").ModelError, match="no text encoder"):
        part("nodes.text_encoder").HostEncoder(None, model, (64, 64), torch.device("cpu"))


def test_private_unet_is_ordinary_and_equal(part: Part, host: Host, model: Patcher) -> None:
    lora = model.clone()
    lora.add_patches({FULL: ("diff", (torch.ones(8, 6) / 8,))})
    with torch.inference_mode():
        own = part("nodes.private_unet").private_denoiser(lora)
    weights = dict(own.module.named_parameters())
    assert not any(weight.is_inference() for weight in weights.values())
    assert torch.equal(weights[KEY], part("nodes.weights").Weights(lora).read(KEY))
    lent = part("nodes.host").HostDenoiser(lora)
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 12, 6)
    found = asked(part, own, x, 500, context)
    torch.testing.assert_close(found, asked(part, lent, x, 500, context), rtol=1e-3, atol=2e-3)
