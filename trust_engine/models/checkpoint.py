"""Model files on disk: split into UNet, text towers and decoder, read one tensor at a time."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..io.files import open_regular
from ..io.safetensors import DTYPES, Header, read_header, read_tensor
from .families import SUPPORTED, other_kind
from .formats import check_format
from .precision import compute_type, widen
from .tower_keys import LazyTensor, LazyTensors
from .unet_keys import LDM_PREFIX, projection_of

LONGEST_HEADER = 64 << 20
CHECKED = 1 << 16  # entries of a weight that are checked at once
VAE_PREFIX = "first_stage_model."
APPLIED = "trust-applied"  # metadata: which diffs are in a file's weights already
PARTS = ("text_encoder", "text_encoder_2", "vae")
_NAMES = ("model", "diffusion_pytorch_model")
_PREFIXES = (LDM_PREFIX, "diffusion_model.", "")
_LDM = {"input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"}
_FILE = re.compile(
    r"(?P<name>model|diffusion_pytorch_model)(?:\.(?P<variant>[\w-]+))?\.safetensors"
)
_SHARD = re.compile(r"-\d+-of-\d+\b")
_INDEX = re.compile(
    r"(?P<name>model|diffusion_pytorch_model)\.safetensors\.index(?:\.(?P<variant>[\w-]+))?\.json"
)
_KNOWN = ("", "fp16", "bf16", "fp32")  # variants, the one that is taken first


@dataclass(frozen=True)
class Source:
    """One open safetensors file of a model."""

    path: Path
    file: BinaryIO
    header: Header

    def stock(self) -> dict[str, LazyTensor]:
        """List its tensors, not read yet."""
        return {name: self.stored(name) for name in self.header.entries}

    def stored(self, name: str) -> LazyTensor:
        """Return one tensor, not read yet."""
        entry = self.header.entries[name]

        def read() -> Tensor:
            if entry.dtype not in DTYPES:
                raise ModelError(
                    f"{self.path}: {name} is of type {entry.dtype}; take the float16 version"
                )
            return read_tensor(self.file, entry)

        return LazyTensor(name, entry.shape, DTYPES.get(entry.dtype, torch.float32), read)


@dataclass(frozen=True)
class Checkpoint:
    """An open model: tensors by name in parts, and what it says of itself.

    unet: without prefix, in `layout`; rest: all else, of a single file under its own names, of a
    folder under "text_encoder/...", "vae/..."; scheduler: the folder's scheduler_config.json;
    sources: the files that hold the UNet; metadata: of the first of them.
    """

    path: Path
    layout: Literal["ldm", "diffusers"]
    unet: LazyTensors
    rest: LazyTensors
    metadata: Mapping[str, str] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()

    def part(self, prefix: str) -> dict[str, LazyTensor]:
        """Take the tensors below a prefix of `rest`, without it."""
        return {k[len(prefix) :]: s for k, s in self.rest.items() if k.startswith(prefix)}

    @property
    def applied(self) -> dict[str, Any]:
        """Return the file's record of diffs put into it: base, and diffs in order; or nothing.

        Raises ModelError for a record that cannot be read.
        """
        return _record(self.path, self.metadata)


def _record(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get(APPLIED)
    if text is None:
        return {}
    try:
        found = json.loads(text)
        sound = isinstance(found["base"], str) and all(
            isinstance(one["sha256"], str) and isinstance(one["strength"], int | float)
            for one in found["diffs"]
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        sound = False
    if not sound:
        raise ModelError(
            f"{path}: its record of the diffs in it ({APPLIED}) cannot be read; "
            "start from the model it was made of"
        )
    return dict(found)


def record_of(path: Path) -> dict[str, Any]:
    """Read a single file's record of diffs put into it; nothing for a file that is no safetensors.

    Raises ModelError for a record that cannot be read.
    """
    try:
        with open_regular(path, ModelError) as file:
            metadata = read_header(file, str(path), ModelError, LONGEST_HEADER).metadata
    except ModelError:
        return {}
    return _record(path, metadata)


@contextlib.contextmanager
def open_checkpoint(path: Path, whole: bool = True) -> Iterator[Checkpoint]:
    """Open a single-file checkpoint or a diffusers folder; raises ModelError for anything else.

    whole: refuse a UNet without its text encoder; else a UNet's file or folder will do, too.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = path.is_dir()
        except (OSError, ValueError) as error:
            told = getattr(error, "strerror", None) or error
            raise ModelError(f"{path}: cannot be read ({told})") from error
        yield _open_folder(path, stack, whole) if folder else _open_file(path, stack, whole)


def _open_file(path: Path, stack: contextlib.ExitStack, whole: bool) -> Checkpoint:
    source = _source(path, stack)
    stock, metadata = source.stock(), source.header.metadata
    prefix = _prefix(stock, whole)
    if prefix is None and not whole and _has_unet(stock, "down_blocks."):
        return Checkpoint(path, "diffusers", stock, {}, metadata, {}, (source,))
    if prefix is None:
        raise ModelError(f"{path}: {_no_unet(stock, whole)}")
    names = [n for n in stock if n.startswith(prefix) and (prefix or n.split(".")[0] in _LDM)]
    unet = {name[len(prefix) :]: stock[name] for name in names}
    rest = {name: stored for name, stored in stock.items() if name not in set(names)}
    return Checkpoint(path, "ldm", unet, rest, metadata, {}, (source,))


def _prefix(stock: LazyTensors, whole: bool) -> str | None:
    """Find where in a single file the UNet that programs load begins."""
    if whole:
        return LDM_PREFIX if f"{LDM_PREFIX}input_blocks.0.0.weight" in stock else None
    found = (prefix for prefix in _PREFIXES if _has_unet(stock, f"{prefix}input_blocks."))
    return next(found, None)


def _has_unet(stock: LazyTensors, start: str) -> bool:
    return any(name.startswith(start) and projection_of(name) for name in stock)


def _no_unet(stock: LazyTensors, whole: bool) -> str:
    kind = other_kind(stock)
    if kind is not None:
        return f"{kind}; this release reads checkpoints of {SUPPORTED}"
    if any(k.startswith("model_ema.") for k in stock):
        return (
            "holds averaged weights alone (model_ema...), which hosts do not load as they are; "
            "give the version with model.diffusion_model..., or convert it"
        )
    bare = ("input_blocks.", "conv_in.", "diffusion_model.")
    if whole and any(key.startswith(bare) for key in stock):
        return "a UNet without its text encoder; give the full checkpoint, or a diffusers folder"
    return (
        f"not a Stable Diffusion checkpoint: no Stable Diffusion UNet in this file (it has no "
        f"{LDM_PREFIX}input_blocks.0.0.weight); "
        f"give a single file or diffusers folder of {SUPPORTED}"
    )


def _open_folder(path: Path, stack: contextlib.ExitStack, whole: bool) -> Checkpoint:
    there = path / "unet"
    if not there.is_dir():
        if whole or not _listed(path):
            kind = read_json(path / "model_index.json").get("_class_name")
            said = f"a folder of {kind}" if kind else "no such file, nor a diffusers folder"
            raise ModelError(
                f"{path}: {said} (there is no unet/ in it); give a model of {SUPPORTED}"
            )
        there = path
    sources = open_part(there, stack)
    rest = {
        f"{part}/{name}": stored
        for part in PARTS
        if whole and (path / part).is_dir()
        for source in open_part(path / part, stack)
        for name, stored in source.stock().items()
    }
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    unet = {name: stored for source in sources for name, stored in source.stock().items()}
    metadata = sources[0].header.metadata
    return Checkpoint(path, "diffusers", unet, rest, metadata, scheduler, sources)


def open_part(folder: Path, stack: contextlib.ExitStack) -> tuple[Source, ...]:
    """Open a part of a diffusers folder: one file or its shards, of the variant that is there.

    The plain one goes before fp16, bf16 and fp32; of others there must be one alone.
    """
    if "quantization_config" in read_json(folder / "config.json"):
        raise ModelError(
            f"{folder}: its weights are stored quantised (quantization_config in config.json); "
            "take the float16 or bfloat16 version of the model"
        )
    found = _listed(folder)
    variants = [v for v in _KNOWN if v in found] or sorted(found)
    if not variants:
        raise ModelError(
            f"{folder}: no {_NAMES[1]}.safetensors or {_NAMES[0]}.safetensors; only safetensors is "
            f"read{_instead(folder)}"
        )
    if variants[0] not in _KNOWN and len(variants) > 1:
        raise ModelError(
            f"{folder}: holds variants {', '.join(variants)}; leave the one to be read"
        )
    sources = tuple(_source(file, stack) for file in found[variants[0]])
    seen: set[str] = set()
    for source in sources:
        twice = seen & source.header.entries.keys()
        if twice:
            raise ModelError(f"{source.path}: {sorted(twice)[0]} is in another shard, too")
        seen |= source.header.entries.keys()
    return sources


def _listed(folder: Path) -> dict[str, list[Path]]:
    """List the weights of a part by variant: its file, or the shards of its index."""
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        match = _FILE.fullmatch(entry.name)
        if match is not None and not _SHARD.search(entry.name):
            found.setdefault(match["variant"] or "", [entry])
    for entry in sorted(folder.iterdir()):
        match = _INDEX.fullmatch(entry.name)
        if match is None:
            continue
        index = read_json(entry).get("weight_map")
        shards = sorted(set(map(str, index.values()))) if isinstance(index, dict) else []
        inside = shards and all(Path(shard).name == shard for shard in shards)
        variant = match["variant"] or ""
        if inside and (variant not in found or (folder / shards[0]).is_file()):
            found[variant] = [folder / shard for shard in shards]
    return found


def _instead(folder: Path) -> str:
    kinds = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".gguf")
    there = [entry.name for entry in sorted(folder.iterdir()) if entry.suffix in kinds]
    return f", and there is {there[0]}; convert it" if there else ""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; nothing for a file that is not there, ModelError for another one."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())  # in whichever UTF it is written
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    return found if isinstance(found, dict) else {}


def _source(path: Path, stack: contextlib.ExitStack) -> Source:
    file = stack.enter_context(open_regular(path, ModelError))
    header = read_header(file, str(path), ModelError, LONGEST_HEADER)
    check_format(str(path), header)
    return Source(path, file, header)


def size_of(stock: LazyTensors, whole: bool) -> int:
    """Count the bytes that a part takes in memory; whole: in float32."""
    return sum(_numel(s) * held(s.dtype, whole).itemsize for s in stock.values())


def _numel(stored: LazyTensor) -> int:
    return torch.Size(stored.shape).numel()


def held(stored: torch.dtype, whole: bool) -> torch.dtype:
    """Tell the dtype in which a weight is held: its own, unless that is wider than float32."""
    return torch.float32 if whole or stored == torch.float64 else stored


def check_names(module: nn.Module, weights: LazyTensors, what: str) -> None:
    """Raise ModelError unless a part has all names and shapes of a module, and no others."""
    expected = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    expected = {n: shape for n, shape in expected.items() if not n.endswith("position_ids")}
    missing = [name for name in expected if name not in weights]
    unexpected = [stored.name for name, stored in weights.items() if name not in expected]
    if missing and len(missing) > 2 and not unexpected and what == "UNet":
        raise ModelError(
            f"the checkpoint's UNet lacks {missing[:1]} and {len(missing) - 1} more weights of its "
            "family: a distilled model such as SSD-1B, Vega or BK-SDM, which is not supported, or "
            "a damaged file"
        )
    if missing or unexpected:
        raise ModelError(f"the checkpoint's {what} lacks {missing[:3]} or adds {unexpected[:3]}")
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise ModelError(
                f"the checkpoint's {what} has other shapes: {weights[name].name} is "
                f"{list(weights[name].shape)}, expected {list(shape)}"
            )


def fill(
    module: nn.Module, weights: LazyTensors, what: str, device: torch.device, whole: bool = False
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
    if not finite(weight):
        raise ModelError(f"the checkpoint's {what} holds {not_finite(name)}")


def finite(weight: Tensor) -> bool:
    """Tell whether all values of a weight are numbers."""
    # In blocks: what is freed of a check of the whole would stay with the process.
    blocks = weight.detach().flatten().split(CHECKED)
    narrow = weight.element_size() == 1
    return all(bool((b.float() if narrow else b).isfinite().all()) for b in blocks)


def not_finite(name: str) -> str:
    """Say what a weight that is not finite means, and what to do."""
    return (
        f"NaN or infinite values ({name}): the file is damaged, or was merged or converted badly; "
        "get it anew"
    )


def _positions(name: str, buffer: Tensor, device: torch.device) -> Tensor:
    if name != "position_ids":
        raise ModelError(f"this version of transformers or diffusers adds an unknown buffer {name}")
    return torch.arange(buffer.shape[-1], device=device).expand(buffer.shape).clone()
