"""A picture by ComfyUI's own loader, sampler and decoder, without and with one of our diffs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NAME = "/comfy/custom_nodes/trust-unlearn"
PROMPT, SEED, STEPS, CFG = "a gun on a red background", 7, 20, 4.0
SHORT = {"trajectory_steps": 2, "passes": 64}  # settings of a dry run
FEW = 4  # its steps, of training and of sampling


def picture(dry: bool, out: Path, host: Path) -> dict[str, Any]:
    """Unlearn "gun" from the demo model as a MODEL and draw it before, under the diff, and after.

    Raises RuntimeError when the patch is not in what was drawn, or the base comes back changed.
    """
    sys.path.insert(0, str(host))
    sys.argv = ["main.py", *(["--cpu"] if dry else [])]
    import comfy.options

    comfy.options.enable_args_parsing()
    dynamic = False if dry else start_dynamic_vram()
    if not dry and not dynamic:
        raise RuntimeError("comfy-aimdo does not start here: dynamic VRAM cannot be checked")
    nodes = pack()
    if dry:
        efforts = importlib.import_module(f"{NAME}.nodes.settings")
        efforts.EFFORTS["dry"] = FEW / efforts.DEFAULTS["steps"]
    with torch.inference_mode():
        model, clip, vae = nodes["TrustDemoModel"]().load()
        steps = FEW if dry else STEPS
        before = drawn(model, clip, vae, steps)
        began = time.perf_counter()
        after_model, diff, report = unlearned(nodes, model, clip, vae, dry)
        spent = time.perf_counter() - began
        after, again = (drawn(after_model, clip, vae, steps) for _ in range(2))
        back = drawn(model, clip, vae, steps)
    for name, image in (("before", before), ("after", after)):
        Image.fromarray(image).save(out / f"comfy_{name}.png")
    moved = float(np.abs(after.astype(int) - before.astype(int)).mean())
    if not moved:
        raise RuntimeError("the picture under the diff is the one without it: the patch is not in")
    if not np.array_equal(before, back):
        raise RuntimeError("without the diff the picture is not what it was before")
    return {
        "comfyui": version(host), "torch": torch.__version__, "dynamic_vram": dynamic,
        "patcher": type(model).__name__, "patches": len(after_model.patches),
        "entries_changed": diff.changed, "unlearning_seconds": spent, "mean_moved_of_255": moved,
        "same_twice": bool(np.array_equal(after, again)), "back_as_before": True,
        "report": report.splitlines()[0],
    }  # fmt: skip


def start_dynamic_vram() -> bool:
    """Switch dynamic VRAM on as ComfyUI's main.py does; tells whether it is on."""
    import comfy_aimdo.control as control

    control.init()
    import comfy.memory_management
    import comfy.model_management as mm
    import comfy.model_patcher

    devices = mm.get_all_torch_devices()
    try:
        there = control.init_devices((device.index, 0) for device in devices)
    except TypeError:  # an older protocol
        there = control.init_devices(device.index for device in devices)
    if not there:
        return False
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
    return True


def pack() -> Any:
    """Load our nodes as ComfyUI does."""
    path = str(ROOT / "__init__.py")
    spec = importlib.util.spec_from_file_location(
        NAME, path, submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS


def unlearned(nodes: Any, model: Any, clip: Any, vae: Any, dry: bool) -> Any:
    """Run the Unlearn node; returns the patched MODEL, the diff and the report."""
    settings = importlib.import_module(f"{NAME}.nodes.settings")
    (concept,) = nodes["TrustConcept"]().describe("gun", "single", preserve="cat" if dry else "")
    told = settings.Settings(SHORT) if dry else None
    after, diff, _, report = nodes["TrustUnlearn"]().unlearn(
        model, clip, concept, "csr", "local", "dry" if dry else "normal", 0.03, False, 0,
        vae=vae, settings=told, pictures=2 if dry else 8,
    )["result"]  # fmt: skip
    return after, diff, report


def drawn(model: Any, clip: Any, vae: Any, steps: int) -> np.ndarray:
    """Draw one picture by the host's sampler and VAE, (h, w, 3) uint8."""
    import comfy.sample

    def encoded(text: str) -> list[Any]:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    latent = torch.zeros(1, 4, 16, 16)
    noise = comfy.sample.prepare_noise(latent, SEED)
    samples = comfy.sample.sample(
        model, noise, steps, CFG, "euler", "normal", encoded(PROMPT), encoded(""), latent,
        denoise=1.0, seed=SEED, disable_pbar=True,
    )  # fmt: skip
    image = vae.decode(samples)[0]
    return (image.float().cpu().clamp(0, 1) * 255).round().byte().numpy()


def version(host: Path) -> str:
    """Read which ComfyUI it is."""
    path = host / "comfyui_version.py"
    text = path.read_text("utf-8") if path.is_file() else ""
    return text.rpartition("=")[2].strip().strip("\"'") or "unknown"
