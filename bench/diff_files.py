"""Size, time and memory of every diff format on a full-size UNet of random weights, on the CPU.

python -m bench.diff_files --family sd1
python -m bench.diff_files --family sdxl --formats trust dense lora

Saving and loading are timed once, files in the page cache; applying, taking back and reading the
touched weights are the best of 21 turns, in the processor's time of one thread. Memory is what a
step adds at its peak.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trust_engine.diff import SparseOffset, WeightDiff, applied, load_diff, save_diff
from trust_engine.diff.bake import write_checkpoint, write_unet_folder, write_unet_pt
from trust_engine.diff.base_model import BaseModel, open_base
from trust_engine.diff.lora import export_dense, export_lora
from trust_engine.io.safetensors import planned, tensor_bytes, write_tensors
from trust_engine.models.contract import ModuleDenoiser, ldm_denoiser, projections, scaled_linear
from trust_engine.models.unet_families import FAMILIES, Family
from trust_engine.models.unet_keys import LDM_PREFIX, KeyMap, projection_of
from trust_engine.spec import ConceptSpec, UnlearnSpec

BLOCK = 1 << 20
FORMATS = ("trust", "dense", "lora", "checkpoint", "unet-folder", "unet-pt")


def main() -> None:
    """Build the UNet, then print a line a format."""
    parser = argparse.ArgumentParser("python -m bench.diff_files", description=__doc__)
    parser.add_argument("--family", choices=("sd1", "sd2", "sdxl"), default="sd1")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--share", type=float, default=default_share(), help="entries moved, 0..1")
    parser.add_argument("--rank", type=int, default=32, help="cap of the LoRA's rank")
    parser.add_argument("--folder", type=Path, help="for the files (default: a temporary one)")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="diff-files-", dir=args.folder))
    try:
        run(FAMILIES[args.family], args.formats, args.share, args.rank, folder)
    finally:
        shutil.rmtree(folder)


def default_share() -> float:
    """Return the share of q/k/v entries that a single concept may move by default."""
    return UnlearnSpec((ConceptSpec(("gun",)),)).budget


def run(family: Family, formats: list[str], share: float, rank: int, folder: Path) -> None:
    """Measure the formats one after the other."""
    shapes = unet_shapes(family)
    write_base(shapes, folder / "base.safetensors")
    touched = {key: shape for key, shape in shapes.items() if projection_of(key)}
    diff = random_diff(touched, share, family)
    total = sum(map(math.prod, shapes.values()))
    print(
        f"{family.name}: UNet of {total / 1e6:,.1f} M weights in float16, of them "
        f"{sum(map(math.prod, touched.values())) / 1e6:,.2f} M q/k/v; the diff moves "
        f"{diff.changed:,} entries ({diff.share:.2%})"
    )
    with open_base(folder / "base.safetensors") as base:
        lent = lend(base, list(touched))
        torch.set_num_threads(1)  # reading and applying alike, whatever else the machine does
        reading = best(lambda: (read_once(lent),))[0]
        print(f"reading the touched weights once: {1000 * reading:,.1f} ms\n")
        print(
            f"{'format':12s} {'MB':>9s} {'save s':>8s} {'load s':>8s} {'apply ms':>9s} "
            f"{'x read':>7s} {'back ms':>8s} {'peak MB: save':>14s} {'load':>7s} {'apply':>7s}"
        )
        for name in formats:
            measure(name, diff, base, lent, rank, folder / f"out-{name}", reading)


def measure(
    name: str,
    diff: WeightDiff,
    base: BaseModel,
    lent: ModuleDenoiser,
    rank: int,
    out: Path,
    reading: float,
) -> None:
    """Save, load and apply one format, print its line, and remove its file."""
    parts = [(diff, 1.0)]
    save: dict[str, Callable[[], Any]] = {
        "trust": lambda: save_diff(diff, out),
        "dense": lambda: export_dense(diff, out),
        "lora": lambda: export_lora(diff, out, 0.1, rank),
        "checkpoint": lambda: write_checkpoint(base, parts, out),
        "unet-folder": lambda: write_unet_folder(base, parts, out),
        "unet-pt": lambda: write_unet_pt(base, parts, out),
    }
    report, saving, save_peak = timed(save[name])
    row = [f"{name:12s} {size_of(out) / 1e6:9,.2f} {saving:8.2f}"]
    peaks = [f"{save_peak / 1e6:14,.1f}"]
    if name in ("trust", "dense", "lora"):
        content, loading, load_peak = timed(lambda: load_diff(out) if name == "trust" else raw(out))
        apply = (lambda: enter(lent, content)) if name == "trust" else (lambda: add(lent, content))
        _, _, apply_peak = timed(apply)
        applying, *back = best(apply)
        row.append(f"{loading:8.2f} {1000 * applying:9,.1f} {applying / reading:7.1f}")
        row.append(f"{1000 * back[0]:8,.1f}" if back else f"{'-':>8s}")
        peaks += [f"{load_peak / 1e6:7,.1f}", f"{apply_peak / 1e6:7,.1f}"]
    else:
        row.append(f"{'-':>8s} {'-':>9s} {'-':>7s} {'-':>8s}")
    print(" ".join([*row, *peaks]) + (f"   {report}" if report else ""), flush=True)
    shutil.rmtree(out) if out.is_dir() else out.unlink()


def unet_shapes(family: Family) -> dict[str, tuple[int, ...]]:
    """List every weight of the family's UNet under its ldm name, from diffusers' own class."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**family.config)
    keys = KeyMap(family.shape)
    return {keys.to_ldm(name): tuple(w.shape) for name, w in unet.state_dict().items()}


def write_base(shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """Write a checkpoint of random float16 weights: one block of them, over and over."""
    block = tensor_bytes(
        0.03 * torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).half()
    )
    plan = planned({LDM_PREFIX + key: (torch.float16, shape) for key, shape in shapes.items()})

    def produce(name: str) -> Iterator[memoryview]:
        left = plan[name][2]
        while left:
            yield block[: min(left, len(block))]
            left -= min(left, len(block))

    write_tensors(path, plan, produce, {})


def random_diff(touched: dict[str, tuple[int, ...]], share: float, family: Family) -> WeightDiff:
    """Move about this share of each weight, at random places."""
    chance, offsets = torch.Generator().manual_seed(1), {}
    for key, shape in touched.items():
        mean = 1 / share
        count = round(math.prod(shape) * share)
        gaps = torch.empty(count).exponential_(1 / mean, generator=chance).round().clamp(min=1)
        places = gaps.long().cumsum(0)
        places = places[places < math.prod(shape)]
        values = 0.01 * torch.randn(len(places), generator=chance)
        offsets[key] = SparseOffset(shape, places.int(), values)
    spec = UnlearnSpec((ConceptSpec(("gun",)),)).to_json()
    return WeightDiff(offsets, {"spec": spec, "family": family.name, "base": "0" * 32}).compact()


def lend(base: BaseModel, keys: list[str]) -> ModuleDenoiser:
    """Load the touched weights as a host holds them."""
    root = nn.Module()
    for key in keys:
        *folders, last = key.split(".")
        here: nn.Module = root
        for folder in folders:
            if folder not in here._modules:
                here.add_module(folder, nn.Module())
            here = getattr(here, folder)
        here.register_parameter(last, nn.Parameter(base.read(key), requires_grad=False))
    return ldm_denoiser(root, scaled_linear())


def read_once(lent: ModuleDenoiser) -> float:
    """Read every byte of the touched weights; returns seconds."""
    start = time.thread_time()
    for weight in lent.module.parameters():
        weight.detach().view(-1).view(torch.int64).sum()
    return time.thread_time() - start


def enter(lent: ModuleDenoiser, diff: WeightDiff) -> tuple[float, float]:
    """Apply a diff and take it back; returns the seconds of each."""
    start = time.thread_time()
    with applied(lent, [(diff, 1.0)]):
        there = time.thread_time()
    return there - start, time.thread_time() - there


def add(lent: ModuleDenoiser, tensors: dict[str, Tensor]) -> tuple[float]:
    """Add a stock file's offsets, as hosts do; returns seconds."""
    start = time.thread_time()
    for key, weight in projections(lent).items():
        name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
        if f"{name}.diff" in tensors:
            weight += tensors[f"{name}.diff"]
        elif f"{name}.lora_up.weight" in tensors:
            up, down = (tensors[f"{name}.lora_{part}.weight"].float() for part in ("up", "down"))
            weight += (up @ down).half()
    return (time.thread_time() - start,)


def raw(path: Path) -> dict[str, Tensor]:
    """Load a stock file whole."""
    from safetensors.torch import load

    return load(path.read_bytes())


def timed(work: Callable[[], Any]) -> tuple[Any, float, int]:
    """Return (result, seconds, bytes of memory that were added at the peak)."""
    before = reset_peak()
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start, max(0, status("VmHWM") - before)


def best(work: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
    """Return the least seconds of 21 turns, of each part of the work on its own."""
    return tuple(map(min, zip(*(work() for _ in range(21)), strict=True)))


def reset_peak() -> int:
    """Forget the peak of memory so far, and return what is in use."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(field: str) -> int:
    """Read one figure of this process's memory, in bytes; 0 where /proc is missing."""
    path = Path("/proc/self/status")
    text = path.read_text() if path.exists() else f"{field}: 0"
    return 1024 * int(text.split(f"{field}:")[1].split()[0])


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of a folder's files."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    main()
