"""A tiny random model to lend: a UNet under both call conventions, and a text encoder."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from toys.small_unet import numbers
from trust_engine.diff import SparseOffset, WeightDiff, fingerprint
from trust_engine.models.contract import (
    Conditioning,
    LentModel,
    ModuleDenoiser,
    NoiseSchedule,
    ldm_denoiser,
    projections,
    scaled_linear,
)
from trust_engine.models.diffusers_unet import diffusers_denoiser
from trust_engine.models.unet_keys import KeyMap, UNetShape
from trust_engine.spec import ABLATIONS, Ablation, ConceptSpec, UnlearnSpec

torch.set_num_threads(1)

SHAPE = UNetShape(blocks=1, attention=(True, False))
WIDTH, TOKENS = 16, 14
KEY = "middle_block.1.transformer_blocks.0.attn2.to_v.weight"
WORDS = ("cat", "dog", "car", "beer")
CONFIG = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def tiny_unet(seed: int = 0) -> nn.Module:
    """Build a random diffusers UNet with seven cross-attention layers."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DConditionModel(**CONFIG).eval().requires_grad_(False)


class LdmUNet(nn.Module):
    """The same weights under ldm names, called as A1111, Forge and ComfyUI call theirs."""

    def __init__(self, unet: nn.Module, shape: UNetShape) -> None:
        super().__init__()
        self.__dict__["unet"] = unet  # out of sight of named_modules
        keys = KeyMap(shape)
        for name, module in unet.named_modules():
            inner = any(True for _ in module.parameters(recurse=False)) and ".attn2." not in name
            if inner or name.endswith(".attn2"):
                self._place(keys.to_ldm(f"{name}.weight").removesuffix(".weight"), module)

    def _place(self, path: str, module: nn.Module) -> None:
        here: nn.Module = self
        *folders, last = path.split(".")
        for folder in folders:
            if folder not in here._modules:
                here.add_module(folder, nn.Module())
            here = here._modules[folder]
        here.add_module(last, module)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None
    ) -> Tensor:
        """Predict eps, (b, 4, h, w)."""
        return self.unet(x, timesteps, encoder_hidden_states=context).sample


class WordEncoder:
    """Words to rows by their hash; like a causal text tower, the last row has read them all."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to (b, TOKENS, WIDTH)."""
        return Conditioning(torch.stack([self._rows(prompt) for prompt in prompts]))

    def count_tokens(self, prompt: str) -> int:
        """Count words."""
        return len(prompt.split())

    def _rows(self, prompt: str) -> Tensor:
        return _rows(prompt)


class HostEncoder(WordEncoder):
    """Encode as a host in inference mode does, whatever mode the caller is in."""

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to inference tensors."""
        return super().encode(prompts)


@functools.cache
def _rows(prompt: str) -> Tensor:
    words = ["<start>", *prompt.lower().split()[: TOKENS - 2]]
    words += ["<end>"] * (TOKENS - len(words))
    rows = torch.stack([_row(word) for word in words])
    return rows + 0.5 * rows.cumsum(0) / torch.arange(1, TOKENS + 1).view(-1, 1)


@functools.cache
def _row(word: str) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
    return torch.randn(WIDTH, generator=generator)


def tiny_denoiser(style: str = "diffusers", seed: int = 0) -> ModuleDenoiser:
    """Lend the UNet the way diffusers or ldm hosts do."""
    unet = tiny_unet(seed)
    if style == "ldm":
        return ldm_denoiser(LdmUNet(unet, SHAPE), scaled_linear())
    return diffusers_denoiser(unet, scaled_linear(), SHAPE)


def tiny_model(style: str = "diffusers", seed: int = 0) -> LentModel:
    """Lend the whole tiny model."""
    return LentModel(tiny_denoiser(style, seed), WordEncoder(), (4, 4), WORDS)


def tiny_spec(**changes: object) -> UnlearnSpec:
    """Ask for a run that takes under a second; independent of the engine's defaults.

    changes: of the spec, and of its ablation.
    """
    settings = {
        "steps": 3,
        "trajectory_steps": 2,
        "passes": 64,
        "budget": 0.15,
        "xi": 0.2,
        "objective": "csr",
        "schedule": "bounded",
        "rate": 0.3,
        "beta": 4.0,
        "eta": 0.0,
    }
    gun = ConceptSpec(("gun",), preserve=("a cat",))
    ablated = {name: changes.pop(name) for name in ABLATIONS if name in changes}
    settings["ablation"] = Ablation(**ablated)
    return UnlearnSpec(**{"concepts": (gun,), **settings, **changes})


def fake_denoiser(
    predict: Callable[[Tensor, Tensor, Conditioning], Tensor], schedule: NoiseSchedule
) -> ModuleDenoiser:
    """Pass a plain function off as a UNet."""
    return ModuleDenoiser(nn.Linear(1, 1), schedule, predict, str, str)


def frozen_bits(module: nn.Module) -> dict[str, tuple[bytes, bool, bool]]:
    """Take down every weight's bytes, gradient flag and whether a gradient hangs on it."""
    weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        name: (w.detach().cpu().numpy().tobytes(), w.requires_grad, w.grad is not None)
        for name, w in weights.items()
    }


def hooks_of(module: nn.Module) -> Iterator[object]:
    """List hooks that hang on any part of a module."""
    for part in module.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            yield from getattr(part, kind).values()


def some_diff(denoiser: ModuleDenoiser, seed: int = 0) -> WeightDiff:
    """Move about a tenth of every projection's entries."""
    generator = torch.Generator().manual_seed(seed)
    offsets = {}
    for key, weight in projections(denoiser).items():
        kept = torch.rand(weight.shape, generator=generator) < 0.1
        offsets[key] = SparseOffset.of(torch.randn(weight.shape, generator=generator) * kept)
    return WeightDiff(
        offsets, {"base": fingerprint(denoiser), "spec": '{"a": 1}', "n": [0.1, None]}
    )


def content(diff: WeightDiff) -> tuple:
    """Spell a diff out, for comparison to the bit."""
    offsets = {key: (o.shape, numbers(o)) for key, o in diff.offsets.items()}
    return offsets, dict(diff.provenance)
