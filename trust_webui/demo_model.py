"""The demo model as a checkpoint of the web UI: laid out by one click, and there after a restart.

The checkpoint holds all weights; what it takes to build the model lies in models/trust_demo, as a
diffusers pipeline without weights, which Forge reads, and as the folder of the text encoder, which
AUTOMATIC1111 reads. A host's own class teaches it the rest: `Host.know_demo`, `Host.see_demo`.
"""

from __future__ import annotations

import filecmp
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from modules import paths_internal
from torch import Tensor, nn

from trust_engine.errors import ModelError
from trust_engine.models.demo_architecture import UNET_CONFIG
from trust_engine.models.demo_clip import ASSETS, CHECKPOINT, TEXT_CONFIG
from trust_engine.models.families import detect

from . import folders
from .host import HERE, current

log = logging.getLogger(__name__)
WIDTH = int(UNET_CONFIG["cross_attention_dim"])
STEM = Path(CHECKPOINT).stem
NEXT = (
    "Draw <b>a gun</b> in txt2img, 128 by 128 pixels, 20 steps. Then type <b>gun</b> into Forget "
    "here and press Unlearn: minutes on a CPU. In the audit its judge is <b>demo</b>. Your own "
    "checkpoint is as it was: choose it again at the top of the page."
)
TAESD = "first_stage_model.taesd_"
VAE = {
    "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 4,
    "block_out_channels": [32] * 4, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 1, "scaling_factor": 1.0,
}  # fmt: skip


def lay() -> Path:
    """Put the checkpoint into the host's folder and teach the host; raises OutputError.

    Returns its path. A file of its name that is another one stays, and it gets a number. The model
    that is loaded stays loaded.
    """
    from modules import sd_models

    folder = folders.checkpoints()
    folders.ready(folder)
    path = folder / CHECKPOINT
    if not (path.is_file() and filecmp.cmp(ASSETS / CHECKPOINT, path, shallow=False)):
        path = folders.fresh(folder, STEM)
        part = path.with_suffix(".part")
        shutil.copyfile(ASSETS / CHECKPOINT, part)
        part.replace(path)  # the host never lists half a file
    _prepare([path])
    sd_models.list_models()
    return path


def begin() -> None:
    """Teach the host again, as it starts, where the demo model lies in its folder."""
    try:
        named = sorted(folders.checkpoints().glob(f"{STEM}*{folders.SUFFIX}"))
        found = [path for path in named if _is_demo(path)]
        if found:
            _prepare(found)
    except Exception:  # the host and the user's own models go on without it
        log.exception("TRUST could not teach the web UI its demo model")


def _is_demo(path: Path) -> bool:
    """Tell the demo's checkpoints, such as one saved under a diff, from others of such a name."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return any(key.startswith(TAESD) for key in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return False


def _prepare(checkpoints: list[Path]) -> None:
    folder = write_pipeline(Path(paths_internal.models_path) / "trust_demo")
    current().know_demo(folder, checkpoints)


def write_pipeline(folder: Path) -> Path:
    """Write the folder of a diffusers pipeline without weights; returns the folder."""
    parts = {
        "": {"scheduler": ["diffusers", "DDIMScheduler"],
             "unet": ["diffusers", "UNet2DConditionModel"],
             "text_encoder": ["transformers", "CLIPTextModel"],
             "tokenizer": ["transformers", "CLIPTokenizer"], "vae": ["diffusers", "AutoencoderKL"],
             "_class_name": "StableDiffusionPipeline"},
        "scheduler": {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
                      "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
                      "prediction_type": "epsilon"},
        "text_encoder": {"model_type": "clip_text_model", **TEXT_CONFIG},
        "unet": {"_class_name": "UNet2DConditionModel", **UNET_CONFIG},
        "vae": VAE,
    }  # fmt: skip
    names = {"": "model_index.json", "scheduler": "scheduler_config.json"}
    for name, config in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        file = folder / name / names.get(name, "config.json")
        file.write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer", "text_encoder"):
        (folder / name).mkdir(exist_ok=True)
        for source in (ASSETS / "tokenizer").iterdir():
            shutil.copyfile(source, folder / name / source.name)
    return folder


def loaded(model: Any) -> None:
    """Give a demo model that the host has loaded its autoencoder, which the host cannot build."""
    host = current()
    shapes = {name: tuple(p.shape) for name, p in host.unet_of(model).named_parameters()}
    try:
        demo = detect(HERE, shapes).unet.name == "demo"
    except ModelError:
        return
    if demo:
        host.see_demo(model, Small(Path(model.sd_checkpoint_info.filename)))


class Small:
    """The demo's own small autoencoder, built by the host's class for such, in float32."""

    def __init__(self, checkpoint: Path) -> None:
        from modules import sd_vae_taesd

        self.parts = {
            "decoder": _filled(sd_vae_taesd.decoder(), checkpoint, "decoder"),
            "encoder": _filled(sd_vae_taesd.encoder(), checkpoint, "encoder"),
        }

    @torch.no_grad()
    def decode(self, latents: Tensor, *_: Any, **__: Any) -> Tensor:
        """Turn latents (b, 4, h, w) into pictures (b, 3, 8h, 8w) in -1..1."""
        decoder = self.parts["decoder"].to(latents.device)
        return (decoder(latents.float()) * 2 - 1).to(latents.dtype)

    @torch.no_grad()
    def encode(self, pictures: Tensor, *_: Any, **__: Any) -> Tensor:
        """Turn pictures (b, 3, 8h, 8w) in -1..1 into latents (b, 4, h, w)."""
        encoder = self.parts["encoder"].to(pictures.device)
        return encoder(pictures.float() / 2 + 0.5).to(pictures.dtype)


def _filled(module: nn.Module, checkpoint: Path, name: str) -> nn.Module:
    from safetensors import safe_open

    prefix = f"{TAESD}{name}."
    with safe_open(checkpoint, "pt") as file:
        part = {k.removeprefix(prefix): file.get_tensor(k).float()
                for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118  # fmt: skip
    module.load_state_dict(part)
    return module.eval()
