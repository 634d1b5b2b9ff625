"""The authors' own code on the demo model, run out of checkouts: none of it is in this repository.

What stands in for theirs: loading (our weights for Stable Diffusion's), pictures (our latents for
a data set), and imports that do no work here (matplotlib, datasets, a converter).
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import inspect
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trust_engine.models.load import LoadedModel

Weights = dict[str, Tensor]


def unet_of(model: LoadedModel) -> Any:
    """Copy the UNet, free to train, and let it stay in float32 where a script asks for bfloat16."""
    unet = copy.deepcopy(model.denoiser.module).requires_grad_(True)
    unet.to = lambda *_args, **_kwargs: unet  # type: ignore[method-assign,assignment]
    return unet


def pipeline_of(model: LoadedModel, unet: Any, pixels: int) -> Any:
    """Make diffusers' own pipeline of the demo model, with DDIM, for latents of its size."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    fixed = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    tower, tokenizer = model.encoder.tower, model.encoder.tokenizer
    scheduler = DDIMScheduler(**betas, **fixed)
    parts = (None, tower, tokenizer, unet, scheduler, None, None)
    pipe = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    pipe.vae_scale_factor = pixels // model.latent_size[0]
    return pipe


def run_uce(
    patch: pytest.MonkeyPatch,
    folder: Path,
    model: LoadedModel,
    out: Path,
    concepts: tuple[list[str], list[str], list[str]],
    scales: tuple[float, float, float],
) -> Weights:
    """Edit with UCE's own function: concepts to erase, their guides, and those to preserve.

    scales: their erase_scale, preserve_scale and lamb.
    """
    with torch.no_grad():  # their module turns gradients off as it is imported, for good
        theirs = _module(folder / "trainscripts/uce_sd_erase.py")
        patch.setattr(theirs, "device", "cpu", raising=False)
        patch.setattr(theirs, "torch_dtype", torch.float32, raising=False)
        theirs.UCE(pipeline_of(model, unet_of(model), 1024), *concepts, *scales, str(out), "uce")
    return load_file(out / "uce.safetensors")


def run_esd(
    patch: pytest.MonkeyPatch, folder: Path, model: LoadedModel, out: Path, flags: Sequence[str]
) -> dict[str, Any]:
    """Run ESD's training script as it is, on the CPU; returns its variables at the end."""
    import diffusers

    pipe = diffusers.StableDiffusionPipeline
    patch.setattr(pipe, "__call__", pipe.__call__)  # theirs takes its place; this puts it back
    patch.setattr(pipe, "from_pretrained", lambda *_, unet, **__: pipeline_of(model, unet, 1024))
    unet = diffusers.UNet2DConditionModel
    patch.setattr(unet, "from_pretrained", lambda *_, **__: unet_of(model))
    before = set(sys.modules)
    patch.syspath_prepend(str(folder))
    patch.setattr(sys, "argv", ["esd_sd.py", "--device", "cpu", "--save_path", str(out), *flags])
    try:
        return runpy.run_path(str(folder / "esd_sd.py"), run_name="__main__")
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "utils":
                del sys.modules[name]


@dataclass
class Pictures:
    """What SalUn is shown: latents (n, 4, h, w) with their prompts' numbers, and all prompts."""

    gone: tuple[Tensor, Tensor]
    kept: tuple[Tensor, Tensor]
    prompts: list[str]


class Salun:
    """SalUn's two scripts on the demo model; `seen` is every (x_0, t, noise) that they noised."""

    def __init__(
        self, patch: pytest.MonkeyPatch, folder: Path, model: LoadedModel, pictures: Pictures
    ) -> None:
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.stand_in = latent_diffusion(folder, model, self.seen)
        self.folder = folder

        def loader(rows: tuple[Tensor, Tensor], batch: int) -> tuple[list[Any], list[str]]:
            cut = zip(*(part.split(batch) for part in rows), strict=True)
            return list(cut), pictures.prompts

        data: Any = ModuleType("dataset")
        data.setup_model = lambda *_: self.stand_in
        data.setup_forget_data = lambda _, batch, *__: loader(pictures.gone, batch)
        data.setup_remain_data = lambda _, batch, *__: loader(pictures.kept, batch)
        data.setup_forget_nsfw_data = None
        convert: Any = ModuleType("convertModels")
        convert.savemodelDiffusers = None
        for stub in (data, convert, ModuleType("matplotlib"), ModuleType("matplotlib.pyplot")):
            patch.setitem(sys.modules, stub.__name__, stub)

    def mask(self, guidance: float, batch: int) -> Weights:
        """Run generate_mask; it leaves the mask in the current folder, where it is read."""
        theirs = _module(self.folder / "SD/train-scripts/generate_mask.py")
        theirs.generate_mask(0, guidance, batch, 1, 1e-5, "", "", "", "cpu")
        return torch.load("mask/0/with_0.5.pt")

    def step(self, alpha: float, batch: int) -> tuple[float, Weights]:
        """Run random_label with that mask on one batch; returns the loss and masked gradients."""
        theirs = _module(self.folder / "SD/train-scripts/random_label.py")
        losses: list[float] = []
        theirs.LMSDiscreteScheduler = lambda **_: None  # made and never used; it asks for scipy
        theirs.save_model = lambda *_args, **_kwargs: None
        theirs.save_history = lambda found, *_: losses.extend(found)
        path = "mask/0/with_0.5.pt"
        theirs.certain_label(0, "full", alpha, batch, 1, 1e-5, "", "", path, "", "cpu")
        named = self.stand_in.model.diffusion_model.named_parameters()
        return losses[0] * batch, {n: p.grad for n, p in named if p.grad is not None}


def latent_diffusion(folder: Path, model: LoadedModel, seen: list[Any]) -> Any:
    """Make their LatentDiffusion: their schedule, noising and loss, our UNet and text encoder.

    Their module asks for pytorch_lightning, omegaconf and torchvision; the functions needed are
    compiled out of the file instead.
    """
    root = folder / "SD/ldm"
    scope = {"np": np, "torch": torch, "partial": partial, "isfunction": inspect.isfunction}
    _compile(root / "util.py", "", ("exists", "default"), scope)
    names = ("make_beta_schedule", "extract_into_tensor")
    _compile(root / "modules/diffusionmodules/util.py", "", names, scope)
    file = root / "models/diffusion/ddpm.py"
    plain = ("register_schedule", "q_sample", "get_loss")
    methods = {
        **_compile(file, "DDPM", plain, dict(scope)),
        **_compile(file, "LatentDiffusion", ("shared_step", "forward", "p_losses"), dict(scope)),
    }
    theirs: Any = type("LatentDiffusion", (nn.Module,), methods)

    class StandIn(theirs):
        first_stage_key, parameterization, loss_type, device = "jpg", "eps", "l2", "cpu"
        cond_stage_trainable = shorten_cond_schedule = learn_logvar = False
        l_simple_weight, original_elbo_weight, v_posterior = 1.0, 0.0, 0.0

        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Module()
            self.model.conditioning_key = "crossattn"
            self.model.diffusion_model = unet_of(model)
            self.register_schedule(linear_start=0.00085, linear_end=0.012)
            self.logvar = torch.zeros(self.num_timesteps)

        def get_input(self, batch: dict[str, Any], key: str) -> tuple[Tensor, Tensor]:
            return batch[key].permute(0, 3, 1, 2), model.encoder.encode(batch["txt"]).context

        def apply_model(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return self.model.diffusion_model(x, t, encoder_hidden_states=cond).sample

        def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
            seen.append((x_start, t, noise))
            return super().q_sample(x_start=x_start, t=t, noise=noise)

    return StandIn()


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"authors_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(path: Path, owner: str, names: Sequence[str], scope: dict[str, Any]) -> dict[str, Any]:
    """Compile functions of a file, or of a class in it, into a scope."""
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    if owner:
        body = next(n for n in body if isinstance(n, ast.ClassDef) and n.name == owner).body
    wanted = [n for n in body if isinstance(n, ast.FunctionDef) and n.name in names]
    assert {n.name for n in wanted} == set(names), f"{path} has not all of {names}"
    for function in wanted:
        function.decorator_list = []
    exec(compile(ast.Module(wanted, []), str(path), "exec"), scope)
    return {name: scope[name] for name in names}
