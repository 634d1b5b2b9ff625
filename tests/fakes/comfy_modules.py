"""The modules of the pretended ComfyUI, as they are found in sys.modules."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from fakes.comfy import Host


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None) -> Tensor:
    """Attend as the host's functions do: (b, n, heads * d) in and out."""
    parts = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2).flatten(2)


class WeightAdapterBase:
    """What patches that compute for themselves derive from."""


def calculate_weight(patches: list, weight: Tensor, key: str, **_: Any) -> Tensor:
    """Add a patch list to a weight: in place, in order, each in the dtype of the weight."""
    for strength, value, model, offset, function in patches:
        function = function or (lambda change: change)
        if model != 1.0:
            weight *= model
        if isinstance(value, WeightAdapterBase):
            weight = value.calculate_weight(weight, key, strength, model, offset, function)  # type: ignore[attr-defined]
            continue
        kind, parts = ("diff", value) if len(value) == 1 else value
        assert kind == "diff", kind
        target = weight if offset is None else weight.narrow(*offset)
        if target.shape == parts[0].shape and strength != 0.0:  # else the host only warns
            target += function(strength * parts[0].to(weight.device, weight.dtype))
    return weight


def rebuilt(value: Any, arriving: list[tuple[Tensor, Tensor]]) -> Any:
    """Rebuild a patch's value as hosts with dynamic VRAM do while a layer is cast.

    Tensors become views of a buffer that holds anything at all; what belongs there comes later:
    arriving gets (view, source). An adapter is made anew of (loaded_keys, weights).
    """
    if isinstance(value, Tensor):
        size = value.numel() * value.element_size()
        buffer = torch.full((size,), 0xFF, dtype=torch.uint8)
        view = buffer.view(value.dtype).view(value.shape)
        arriving.append((view, value))
        return view
    if isinstance(value, WeightAdapterBase):
        return type(value)(value.loaded_keys, rebuilt(value.weights, arriving))  # type: ignore
    if isinstance(value, tuple):
        return tuple(rebuilt(item, arriving) for item in value)
    if isinstance(value, list):
        return [rebuilt(item, arriving) for item in value]
    return value


def cast_with_patches(patches: list, weight: Tensor, key: str) -> Tensor:
    """Cast a weight as hosts with dynamic VRAM do: patches rebuilt, added in the weight's type."""
    arriving: list[tuple[Tensor, Tensor]] = []
    prepared = [(s, rebuilt(value, arriving), *more) for s, value, *more in patches]
    for view, source in arriving:
        view.copy_(source)
    return calculate_weight(prepared, weight, key)


def get_key_weight(model: Any, key: str) -> tuple[Tensor, None, Any]:
    """Find one weight: as it lies in the module, and how it is read."""
    path, _, name = key.rpartition(".")
    convert = getattr(model, "convert", None)
    return getattr(submodule(model, path), name), None, convert


def submodule(model: Any, path: str) -> nn.Module:
    """Find a layer of a MODEL, which is no module here, or of a CLIP's."""
    if hasattr(model, "diffusion_model"):
        model, path = model.diffusion_model, path.removeprefix("diffusion_model.")
    return model.get_submodule(path)


def modules_of(host: Host, models: Path, sparse: bool) -> dict[str, ModuleType]:
    """Build all modules; sparse: as of 2025, with weight adapters."""
    made = {
        "comfy": {"__path__": []},
        "comfy.utils": {"ProgressBar": _progress(host)},
        "comfy.model_management": _management(host),
        "comfy.lora": {"calculate_weight": calculate_weight},
        "comfy.model_patcher": {"get_key_weight": get_key_weight},
        "comfy.clip_model": _text(),
        "comfy.ops": {"disable_weight_init": SimpleNamespace(Linear=nn.Linear)},
        "comfy.sample": {"prepare_noise": _noise, "sample": _sample(host)},
        "comfy.samplers": {"SAMPLER_NAMES": ["euler"], "SCHEDULER_NAMES": ["normal"]},
        "comfy.latent_formats": {"SD15": object},
        "comfy.sd1_clip": {"SDClipModel": nn.Module, "SD1ClipModel": nn.Module, "SD1Tokenizer": 0},
        "comfy.supported_models": {"SD15": type("SD15", (), {}), "models": []},
        "comfy.supported_models_base": {"ClipTarget": lambda *parts: parts},
        "comfy.sd": {},
        "comfy.ldm": {"__path__": []},
        "comfy.ldm.modules": {"__path__": []},
        "comfy.ldm.modules.attention": {"attention_pytorch": attention},
        "folder_paths": _folders(models),
        "server": {"PromptServer": SimpleNamespace(instance=_Server(host))},
    }
    if sparse:
        made["comfy.weight_adapter"] = {"WeightAdapterBase": WeightAdapterBase}
    modules = {}
    for name, content in made.items():
        modules[name] = ModuleType(name)
        vars(modules[name]).update(content)
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(modules[parent], last, module)
    return modules


def _text() -> dict[str, Any]:
    from fakes import comfy_clip as clip  # it builds on fakes.comfy, which imports this module

    names = ("ACTIVATIONS", "CLIPTextModel", "CLIPTextModel_")
    return {name: getattr(clip, name) for name in names}


class _Server:
    def __init__(self, host: Host) -> None:
        self.host = host

    @property
    def client_id(self) -> str | None:
        return self.host.client

    def send_sync(self, event: str, data: dict, sid: str | None = None) -> None:
        assert sid is not None and sid == self.host.client, "everybody would get it"
        self.host.events.append((event, data))


def _progress(host: Host) -> type:
    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: Any = None, preview: Any = None) -> None:
            host.updates += 1
            host.check()
            if host.interrupt_at == host.updates:
                host.interrupt_at = None  # the host forgets it once it has raised
                raise host.interrupt()
            assert preview is None or preview[0] == "JPEG"

    return ProgressBar


def _management(host: Host) -> dict[str, Any]:
    def unload(*_: Any) -> None:
        if host.loaded is not None:
            _, model, backup = host.loaded
            model.write(backup)
            backup.clear()
        host.loaded = None

    def load(
        patchers: list, memory_required: float = 0, minimum_memory_required: float = 0
    ) -> None:
        assert torch.is_inference_mode_enabled(), "the host moves weights in inference mode only"
        (patcher,) = patchers
        if host.loaded is not None and host.loaded[0] == patcher.patches_uuid:
            return
        unload()
        host.loaded = (patcher.patches_uuid, patcher.model, patcher.backup)
        state = patcher.model_state_dict("")
        for key, entries in patcher.patches.items():
            patcher.backup[key] = state[key]
            if host.dynamic:
                whole = cast_with_patches(entries, state[key].clone(), key)
            else:
                whole = calculate_weight(entries, state[key].float().clone(), key)
            patcher.model.write({key: whole.to(state[key].dtype)})

    return {
        "load_models_gpu": load,
        "free_memory": lambda *_: [],
        "get_free_memory": lambda *_: host.free,
        "unload_all_models": unload,
        "soft_empty_cache": lambda: None,
        "throw_exception_if_processing_interrupted": lambda: host.check(),
        "InterruptProcessingException": host.interrupt,
    }


def _noise(latent: Tensor, seed: int) -> Tensor:
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))


def _sample(host: Host) -> Callable[..., Tensor]:
    def sample(
        model: Any, noise: Tensor, steps: int, cfg: float, sampler: str, scheduler: str,
        positive: list, negative: list, latent: Tensor, callback: Any, **_: Any,
    ) -> Tensor:  # fmt: skip
        import comfy.model_management as mm

        mm.load_models_gpu([model])
        x, options = noise, model.model_options["transformer_options"]
        for step in range(steps):
            sigma = torch.full((len(x),), 1.0 - step / steps)
            x = model.model.apply_model(x, sigma, positive[0][0], options)
            callback(step, x, x, steps)
        return x

    return sample


def _folders(models: Path) -> dict[str, Any]:
    known = {
        "loras": ([str(models / "loras")], {".safetensors"}),
        "embeddings": ([str(models / "embeddings")], {".pt"}),
    }

    def listing(kind: str) -> list[str]:
        folders, suffixes = known[kind]
        there = (p for f in folders if os.path.isdir(f) for p in Path(f).iterdir())
        return sorted(p.name for p in there if not suffixes or p.suffix in suffixes)

    def full(kind: str, name: str) -> str | None:
        name = os.path.relpath(os.path.join("/", name), "/")
        paths = (os.path.join(folder, name) for folder in known[kind][0])
        return next((path for path in paths if os.path.isfile(path)), None)

    def saving(prefix: str, root: str) -> tuple[str, str, int, str, str]:
        folder = os.path.join(root, os.path.dirname(os.path.normpath(prefix)))
        if os.path.commonpath((root, os.path.abspath(folder))) != root:
            raise Exception("Saving image outside the output folder is not allowed.")
        os.makedirs(folder, exist_ok=True)
        name = os.path.basename(prefix)
        count = sum(file.startswith(f"{name}_") for file in os.listdir(folder))
        return folder, name, count + 1, "", prefix

    return {
        "folder_names_and_paths": known,
        "models_dir": str(models),
        "get_filename_list": listing,
        "get_full_path": full,
        "get_folder_paths": lambda kind: list(known[kind][0]),
        "get_save_image_path": saving,
        "get_output_directory": lambda: str(models / "output"),
    }
