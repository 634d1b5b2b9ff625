"""Cross-attention as a pure function, and hooks that leave no trace."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from toys.tiny import hooks_of, tiny_denoiser
from trust_engine.errors import ModelError
from trust_engine.models.attention import cross_attention_modules, read_layer, watch_inputs
from trust_engine.models.contract import projections
from trust_engine.models.unet_keys import layer_of


class LdmAttention(nn.Module):
    """The class of ldm hosts, as far as the engine looks: `heads`, `to_*`, `to_out[0]`."""

    def __init__(self, d: int, c: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(n, 24, bias=False) for n in (d, c, c))
        self.to_out = nn.Sequential(nn.Linear(24, d), nn.Dropout(0.0))


def attention(dtype: torch.dtype = torch.float32, out_bias: bool = True) -> Attention:
    """Build a random diffusers layer: 24 wide in 3 heads, tokens of 16."""
    torch.manual_seed(0)
    layer = Attention(20, 16, heads=3, dim_head=8, out_bias=out_bias).eval()
    return layer.requires_grad_(False).to(dtype)


@pytest.mark.parametrize("out_bias", [True, False])
def test_equals_diffusers(out_bias: bool) -> None:
    module = attention(out_bias=out_bias)
    x, context = torch.randn(2, 9, 20), torch.randn(2, 7, 16)
    torch.testing.assert_close(read_layer(module)(x, context), module(x, context))


def test_heads_matter() -> None:
    """The comparison above would notice a wrong split into heads."""
    module = attention()
    x, context = torch.randn(2, 9, 20), torch.randn(2, 7, 16)
    module.heads = 1
    assert not torch.allclose(read_layer(module)(x, context), attention()(x, context), atol=1e-3)


def test_reads_ldm_classes_and_other_dtypes() -> None:
    module = LdmAttention(20, 16, 3)
    for mine, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v")):
        torch.testing.assert_close(
            getattr(read_layer(module), mine), getattr(module, theirs).weight.detach()
        )
    layer = read_layer(attention(torch.bfloat16))
    assert {w.dtype for w in (layer.q, layer.k, layer.v, layer.out, layer.bias)} == {torch.float32}


def test_a_read_layer_is_a_copy() -> None:
    module = attention()
    before = module.to_q.weight.clone()
    read_layer(module).q.zero_()
    torch.testing.assert_close(module.to_q.weight.data, before.data, rtol=0, atol=0)


def test_has_second_derivatives() -> None:
    layer = read_layer(attention())
    q = layer.q.requires_grad_(True)
    x, context = torch.randn(1, 5, 20), torch.randn(1, 4, 16)
    energy = layer(x, context).square().sum()
    (first,) = torch.autograd.grad(energy, q, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), q)
    assert second.abs().max() > 0


@pytest.mark.parametrize("style", ["diffusers", "ldm"])
def test_finds_every_layer(style: str) -> None:
    denoiser = tiny_denoiser(style)
    modules = cross_attention_modules(denoiser)
    assert set(modules) == {layer_of(key) for key in projections(denoiser)}
    assert len(modules) == 4
    assert len(projections(denoiser)) == 12
    assert "middle_block.1.transformer_blocks.0.attn2" in modules


def test_a_unet_without_cross_attention_is_refused() -> None:
    denoiser = tiny_denoiser()
    object.__setattr__(denoiser, "module", nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ModelError, match="attn2"):
        cross_attention_modules(denoiser)


def test_watches_and_lets_go() -> None:
    module, seen = attention(), []
    x, context = torch.randn(2, 9, 20), torch.randn(2, 7, 16)
    with watch_inputs({"here": module}, lambda layer, states: seen.append((layer, states))):
        assert list(hooks_of(module))
        module(x, context)
    module(x, context)
    assert [layer for layer, _ in seen] == ["here"]
    torch.testing.assert_close(seen[0][1], x)
    assert not list(hooks_of(module))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_go_when_things_fail(error: type[BaseException]) -> None:
    modules = {"a": attention(), "b": attention()}
    with pytest.raises(error), watch_inputs(modules, lambda *_: None):
        raise error
    assert not [hook for module in modules.values() for hook in hooks_of(module)]


def test_hooks_go_when_the_watcher_fails() -> None:
    module = attention()

    def see(layer: str, states: torch.Tensor) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), watch_inputs({"a": module}, see):
        module(torch.randn(1, 2, 20), torch.randn(1, 2, 16))
    assert not list(hooks_of(module))
