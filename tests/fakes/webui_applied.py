"""Diffs on the pretended web UIs: what the tests of applying them have in common."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fakes.webui import Processing, Runner, installed, process_images
from fakes.webui_a1111 import FakeA1111, Lora, Network
from fakes.webui_forge import FakeForge
from fakes.webui_neo import FakeNeo
from toys.small_unet import low_rank
from toys.tiny import some_diff
from trust_engine.diff import Offset, SparseOffset, WeightDiff, applied, save_diff

KEY = "input_blocks.1.1.transformer_blocks.0.attn2.to_v"
LAYERS = ("in_layers", "attn1.to_out", "ff.net", "proj_in")
HOSTS = {"a1111": FakeA1111, "forge": FakeForge, "neo": FakeNeo}


def ready(made: Any, tmp_path: Path) -> Iterator[Any]:
    """Enter a pretended host, and give it two diffs."""
    with installed(tmp_path, made.modules) as shared:
        from trust_webui.host import current

        current().begin()
        made.shared, made.folder = shared, tmp_path / "models" / "trust_diffs"
        made.diffs = {}
        for i, name in enumerate(("gun", "style")):
            diff = gentle(some_diff(made.demo.denoiser, i))
            save_diff(diff, made.folder / f"{name}.safetensors")
            made.diffs[name] = diff
        yield made


def gentle(diff: WeightDiff) -> WeightDiff:
    """Make offsets of a size that pictures survive, as files hold them."""
    offsets = {k: o.times(0.05) for k, o in diff.offsets.items()}
    return WeightDiff(offsets, {**diff.provenance, "family": "demo"}).compact()


def scrub(fake: Any, name: str = "scrubbed", seed: int = 3) -> WeightDiff:
    """Give a host another diff: low rank in linear layers and convolutions, and some biases.

    In one weight there are entries on top.
    """
    sparse = fake.diffs["gun"].offsets
    offsets: dict[str, Offset] = {}
    denoiser = _own().demo.denoiser
    for path, weight in denoiser.module.named_parameters():
        key = denoiser.checkpoint_key(path)
        if weight.ndim in (2, 4) and any(part in key for part in LAYERS):
            offsets[key] = low_rank(tuple(weight.shape), 2, seed).times(0.2)
        elif weight.ndim == 1 and any(part in key for part in ("attn1.to_out.0.", "proj_in.")):
            offsets[key] = SparseOffset.of(torch.linspace(-0.2, 0.2, len(weight)))
    key = f"{KEY}.weight"
    offsets[key] = replace(low_rank(sparse[key].shape, 3, seed), sparse=sparse[key].sparse)
    diff = WeightDiff(offsets, fake.diffs["gun"].provenance).compact()
    assert {len(shape) for shape in diff.shapes.values()} == {1, 2, 4}
    save_diff(diff, fake.folder / f"{name}.safetensors")
    fake.diffs[name] = diff
    return diff


def draw(fake: Any, *values: Any, **settings: Any) -> tuple[Any, Any, Any]:
    """Draw with the accordion's values; returns the pictures, p and the runner."""
    from trust_webui.script import TrustScript

    loras = settings.pop("loras", [])
    p = Processing(fake, "a gun", **settings)
    p.loras = loras
    runner = Runner(TrustScript(), *values)
    return process_images(p, runner), p, runner


def expected(fake: Any, *parts: tuple[str, float]) -> torch.Tensor:
    """Draw on a model of our own under the same diffs."""
    own = _own()
    listed = [(fake.diffs[name], strength) for name, strength in parts]
    with applied(own.demo.denoiser, listed):
        return own._sample(SimpleNamespace(prompt="a gun"))


@functools.cache
def _own() -> Any:
    """Have one model to compare with, which nobody changes for good."""
    return FakeA1111()


def lora(fake: Any) -> Any:
    """Make a stock LoRA of the host."""
    offset = 0.02 * torch.ones_like(fake.unet.get_submodule(KEY).weight)
    if isinstance(fake, FakeForge):
        return ("sunny.safetensors", {f"diffusion_model.{KEY}.weight": ("diff", (offset,))})
    net, key = Network("sunny", SimpleNamespace()), fake.unet.get_submodule(KEY).network_layer_name
    net.modules[key] = Lora(net, key, offset)
    return net
