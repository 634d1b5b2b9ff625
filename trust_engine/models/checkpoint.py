"""Model files on disk: split into UNet, text towers and decoder, read one tensor at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..io.files import open_regular
from ..io.safetensors import DTYPES, Entry, read_header, read_tensor
from .families import SUPPORTED, other_kind
from .keys import LDM_PREFIX
from .names import Stock, Stored
from .precision import compute_type, widen

LONGEST_HEADER = 64 << 20
CHECKED = 1 << 16  # entries of a weight that are checked at once
VAE_PREFIX = "first_stage_model."
_NAMES = ("model", "diffusion_pytorch_model")


@dataclass(frozen=True)
class Checkpoint:
    """An open model: tensors by name in parts, and what it says of itself.

    unet: without prefix, in `layout`; rest: all else, of a single file under its own names, of a
    folder under "text_encoder/...", "vae/..."; scheduler: the folder's scheduler_config.json.
    """

    path: Path
    layout: Literal["ldm", "diffusers"]
    unet: Stock
    rest: Stock
    metadata: Mapping[str, str] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Stored]:
        """Take the tensors below a prefix of `rest`, without it."""
        return {k[len(prefix) :]: s for k, s in self.rest.items() if k.startswith(prefix)}


@contextlib.contextmanager
def open_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """Open a single-file checkpoint or a diffusers folder; raises ModelError for anything else."""
    with contextlib.ExitStack() as stack:
        try:
            folder = path.is_dir()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
        yield _open_folder(path, stack) if folder else _open_file(path, stack)


def _open_file(path: Path, stack: contextlib.ExitStack) -> Checkpoint:
    stock, metadata = _stock(path, stack)
    unet = {k[len(LDM_PREFIX) :]: s for k, s in stock.items() if k.startswith(LDM_PREFIX)}
    if "input_blocks.0.0.weight" not in unet:
        raise ModelError(f"{path}: {_no_unet(stock)}")
    rest = {k: s for k, s in stock.items() if not k.startswith(LDM_PREFIX)}
    return Checkpoint(path, "ldm", unet, rest, metadata)


def _no_unet(stock: Stock) -> str:
    kind = other_kind(stock)
    if kind is not None:
        return f"{kind}; this release reads checkpoints of {SUPPORTED}"
    if any(k.startswith(("input_blocks.", "conv_in.", "diffusion_model.")) for k in stock):
        return "a UNet without its text encoder; give the full checkpoint, or a diffusers folder"
    return (
        f"not a Stable Diffusion checkpoint (it has no {LDM_PREFIX}input_blocks.0.0.weight); "
        f"give a single file or diffusers folder of {SUPPORTED}"
    )


def _open_folder(path: Path, stack: contextlib.ExitStack) -> Checkpoint:
    if not (path / "unet").is_dir():
        kind = _json(path / "model_index.json").get("_class_name")
        said = f"a folder of {kind}" if kind else "no such file, nor a diffusers folder"
        raise ModelError(f"{path}: {said} (there is no unet/ in it); give a model of {SUPPORTED}")
    unet = _stock_of(path / "unet", stack)
    rest = {
        f"{part}/{name}": stored
        for part in ("text_encoder", "text_encoder_2", "vae")
        if (path / part).is_dir()
        for name, stored in _stock_of(path / part, stack).items()
    }
    scheduler = _json(path / "scheduler" / "scheduler_config.json")
    return Checkpoint(path, "diffusers", unet, rest, {}, scheduler)


def _stock_of(folder: Path, stack: contextlib.ExitStack) -> dict[str, Stored]:
    """Open a part of a diffusers folder: one file, its float16 variant, or shards."""
    for name in _NAMES:
        for variant in ("", ".fp16"):
            index = _json(folder / f"{name}.safetensors.index{variant}.json").get("weight_map")
            shards = sorted(set(index.values())) if isinstance(index, dict) else []
            files = [folder / f"{name}{variant}.safetensors"]
            if shards and all(Path(str(shard)).name == shard for shard in shards):
                files = [folder / shard for shard in shards]
            if files[0].is_file():
                return {k: s for file in files for k, s in _stock(file, stack)[0].items()}
    raise ModelError(
        f"{folder}: no {_NAMES[1]}.safetensors or {_NAMES[0]}.safetensors; only safetensors is read"
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    return found if isinstance(found, dict) else {}


def _stock(path: Path, stack: contextlib.ExitStack) -> tuple[dict[str, Stored], dict[str, str]]:
    file = stack.enter_context(open_regular(path, ModelError))
    header = read_header(file, str(path), ModelError, LONGEST_HEADER)
    scaled = [name for name in header.entries if name.endswith(("scale_weight", "weight_scale"))]
    if scaled:
        raise ModelError(
            f"{path}: its weights are stored scaled ({scaled[0]}); take the float16 version"
        )
    entries = header.entries.items()
    return {name: _stored(path, file, name, e) for name, e in entries}, header.metadata


def _stored(path: Path, file: BinaryIO, name: str, entry: Entry) -> Stored:
    def read() -> Tensor:
        if entry.dtype not in DTYPES:
            raise ModelError(f"{path}: {name} is of type {entry.dtype}; take the float16 version")
        return read_tensor(file, entry)

    return Stored(name, entry.shape, DTYPES.get(entry.dtype, torch.float32), read)


def size_of(stock: Stock, whole: bool) -> int:
    """Count the bytes that a part takes in memory; whole: in float32."""
    return sum(_numel(s) * held(s.dtype, whole).itemsize for s in stock.values())


def _numel(stored: Stored) -> int:
    return torch.Size(stored.shape).numel()


def held(stored: torch.dtype, whole: bool) -> torch.dtype:
    """Tell the dtype in which a weight is held: its own, unless that is wider than float32."""
    return torch.float32 if whole or stored == torch.float64 else stored


def check_names(module: nn.Module, weights: Stock, what: str) -> None:
    """Raise ModelError unless a part has all names and shapes of a module, and no others."""
    expected = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    expected = {n: shape for n, shape in expected.items() if not n.endswith("position_ids")}
    missing = [name for name in expected if name not in weights]
    unexpected = [stored.name for name, stored in weights.items() if name not in expected]
    if missing or unexpected:
        raise ModelError(f"the checkpoint's {what} lacks {missing[:3]} or adds {unexpected[:3]}")
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise ModelError(
                f"the checkpoint's {what} has other shapes: {weights[name].name} is "
                f"{list(weights[name].shape)}, expected {list(shape)}"
            )


def fill(
    module: nn.Module, weights: Stock, what: str, device: torch.device, whole: bool = False
) -> None:
    """Give a module made without memory its weights, tensor by tensor, in their own dtype.

    whole: in float32. Raises ModelError for a weight that is not finite.
    """
    check_names(module, weights, what)
    for owner_path, owner in module.named_modules():
        for name in [n for n, weight in owner._parameters.items() if weight is not None]:
            stored = weights[f"{owner_path}.{name}" if owner_path else name]
            weight = stored.read()
            if not weight.is_floating_point():
                raise ModelError(f"the checkpoint's {what} holds {stored.name} as {weight.dtype}")
            weight = weight.to(device, held(weight.dtype, whole))
            _check_finite(weight, what, stored.name)
            owner._parameters[name] = nn.Parameter(weight, requires_grad=False)
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None and buffer.is_meta:
                owner._buffers[name] = _positions(name, buffer, device)
    stored_as = next((p.dtype for p in module.parameters() if p.dim() > 1), torch.float32)
    widen(module.eval(), compute_type(stored_as, device))


def _check_finite(weight: Tensor, what: str, name: str) -> None:
    # In blocks: what is freed of a check of the whole would stay with the process.
    blocks = weight.detach().flatten().split(CHECKED)
    narrow = weight.element_size() == 1
    if not all(bool((b.float() if narrow else b).isfinite().all()) for b in blocks):
        raise ModelError(
            f"the checkpoint's {what} holds NaN or infinite values ({name}): the file is damaged, "
            "or was merged or converted badly; get it anew"
        )


def _positions(name: str, buffer: Tensor, device: torch.device) -> Tensor:
    if name != "position_ids":
        raise ModelError(f"this version of transformers or diffusers adds an unknown buffer {name}")
    return torch.arange(buffer.shape[-1], device=device).expand(buffer.shape).clone()
