"""Runs in ComfyUI's interpreter: our patches in the host's own code for dynamic VRAM, on a CPU.

python comfy_contract.py COMFYUI ROOT SPEC_JSON OUT_JSON

Only what needs a GPU has a stand-in: the memory that weights are faulted into. Preparing, copying,
patching, rounding, loading and unloading are the host's. A host without them says so.
"""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from comfy_families import OUT, TOLD, built, digest, mm, pack, part
from comfy_standins import Clip

import comfy.lora  # isort: skip
import comfy.model_patcher  # isort: skip
import comfy.ops  # isort: skip

KEY = "middle_block.1.transformer_blocks.0.attn2.to_q.weight"
FULL = "diffusion_model." + KEY
PLACE = torch.device("cpu", 0)  # which the host does not take for its CPU when it frees memory
SCALES = (1e-1, 1e-2, 1e-3)  # of a change, against weights of about 1e-1


class Room:
    """Stands in for the memory of a GPU, page by page; resident=False has none left."""

    def __init__(self, resident: bool) -> None:
        self.resident, self.pages = resident, {}

    def alloc(self, size: int) -> tuple[Room, int, int]:
        """Return a place for a layer's weights."""
        self.pages[len(self.pages)] = torch.full((size,), 0xFF, dtype=torch.uint8)
        return self, len(self.pages) - 1, size

    def fault(self, place: tuple) -> Any:
        """Return the signature of a place, None when memory is short."""
        return (ctypes.c_uint32 * 2)(1, place[1]) if self.resident else None

    def prioritize(self, *_: Any) -> None:
        """Be asked to keep all this."""

    def loaded_size(self) -> int:
        """Return what is held."""
        return 0

    def free_memory(self, _size: int) -> int:
        """Give everything back."""
        return 0


class Buffer:
    """Stands in for pinned memory, which is not used here."""

    size = 0

    def __init__(self, *_: Any) -> None:
        pass

    def truncate(self, *_: Any, **_more: Any) -> None:
        """Shrink."""


Own = getattr(comfy.model_patcher, "ModelPatcherDynamic", object)


class Dynamic(Own):
    """The host's patcher for dynamic VRAM, on a CPU, where the host takes its other one."""

    room = Room(True)

    def __new__(cls, *_args: Any, **_more: Any) -> Dynamic:
        return object.__new__(cls)

    def _vbar_get(self, create: bool = False) -> Room:
        return type(self).room


def cast(layer: Any, given: Any = None, dtype: Any = None, bias_dtype: Any = None,
         compute_dtype: Any = None, want_requant: bool = False, **_: Any) -> Any:  # fmt: skip
    """Cast a layer as the host does one on a GPU, by its two functions."""
    dtype = dtype or given.dtype
    bias_dtype, device = bias_dtype or dtype, torch.device("cpu")
    comfy.ops.cast_modules_with_vbar([layer], dtype, device, bias_dtype, False)
    told = comfy.ops.resolve_cast_module_with_vbar(
        layer, dtype, device, bias_dtype, compute_dtype, want_requant
    )
    for name in ("weight", "bias"):
        if function := getattr(layer, name + "_lowvram_function", None):
            function.clear_prepared()
    del layer._prefetch
    return told


@contextmanager
def dynamic(resident: bool) -> Iterator[None]:
    """Let the host take a CPU for a GPU with dynamic VRAM."""
    own, Dynamic.room = comfy.ops.cast_bias_weight, Room(resident)

    def chosen(layer: Any, given: Any = None, *args: Any, offloadable: bool = False,
               **more: Any) -> Any:  # fmt: skip
        if not hasattr(layer, "_v"):
            return own(layer, given, *args, offloadable=offloadable, **more)
        weight, bias = cast(layer, given, *args, **more)
        return (weight, bias, (None, None, None)) if offloadable else (weight, bias)

    aimdo = comfy.ops.comfy_aimdo
    with (
        mock.patch.object(comfy.ops, "cast_bias_weight", chosen),
        mock.patch.object(comfy.memory_management, "aimdo_enabled", True),
        mock.patch.object(comfy.ops.args, "disable_pinned_memory", True),
        mock.patch.object(aimdo.host_buffer, "HostBuffer", Buffer),
        mock.patch.object(aimdo.model_vbar, "vbar_fault", lambda place: place[0].fault(place)),
        mock.patch.object(aimdo.model_vbar, "vbar_unpin", lambda place: None),
        mock.patch.object(aimdo.torch, "aimdo_to_tensor", lambda p, _device: p[0].pages[p[1]]),
    ):
        yield


def unload() -> None:
    """Let the host take everything off that lies on what it takes for a GPU."""
    mm.free_memory(1e30, PLACE)
    assert not mm.current_loaded_models


def by_chance(shape: tuple[int, ...], scale: float) -> torch.Tensor:
    """Make a change of a fifth of the entries."""
    chance = torch.Generator().manual_seed(1)
    change = scale * torch.randn(shape, generator=chance)
    return torch.where(torch.rand(shape, generator=chance) < 0.2, change, 0.0)


def diff_of(model: Any, scale: float, rank: int = 0) -> Any:
    """Make a diff of all q, k and v; rank: of factors, in all that have inputs to mix."""
    weights, diff = part("nodes.weights").Weights(model), part("trust_engine.diff")
    if rank:
        every = [key for key, shape in weights.shapes.items() if len(shape) in (2, 4)]
        offsets = {key: factors(weights.shapes[key], scale, rank, diff) for key in every}
        return diff.WeightDiff(offsets, {}).compact()
    offsets = {
        key: diff.SparseOffset.of(by_chance(weights.shapes[key], scale))
        for key in weights.projections
    }
    return diff.WeightDiff(offsets, {})


def factors(shape: tuple[int, ...], scale: float, rank: int, diff: Any) -> Any:
    """Make a product of factors of about this size an entry, with some entries on top."""
    chance = torch.Generator().manual_seed(1)
    up = scale / rank**0.5 * torch.randn(shape[0], rank, *shape[2:], generator=chance)
    down = torch.randn(rank, shape[1], generator=chance)
    sparse = diff.SparseOffset.of(by_chance(shape, scale)) if len(shape) == 2 else None
    return diff.LowRankOffset(up, down, sparse)


@torch.inference_mode()
def lost(dtype: torch.dtype, resident: bool) -> dict[str, Any]:
    """Compare a layer's weight under dynamic VRAM with the true sum, for changes of three sizes.

    share: of entries that do not move; error: of the change, as a share of it.
    """
    told = {}
    for scale in SCALES:
        inner = built("sd1", dtype, model_channels=128).model  # smaller layers are not faulted in
        with dynamic(resident):
            model = Dynamic(inner, PLACE, torch.device("cpu"))
            diff = diff_of(model, scale)
            after = part("nodes.patching").patched(model, diff)
            mm.load_models_gpu([after])
            layer = model.model.diffusion_model.get_submodule(KEY.removesuffix(".weight"))
            wide = torch.float32 if dtype.itemsize == 1 else dtype
            found = [cast(layer, dtype=wide)[0].double().clone() for _ in range(2)]
            base, change = layer.weight.double(), diff.offsets[KEY].dense().double()
            unload()
        nearest = (base + change).to(wide).double()
        at = change != 0
        moved = found[1] - base
        told[str(scale)] = {
            "nearest": torch.equal(found[0], nearest),
            "still": float((moved[at] == 0).double().mean()),
            "error": float((moved - change).norm() / change.norm()),
            "mean": float((moved[at] / change[at]).median()),
            "others": float(moved[~at].abs().max()),
        }
    return told


@torch.inference_mode()
def drawn(dtype: torch.dtype, resident: bool, rank: int = 0) -> dict[str, Any]:
    """Ask the whole UNet by the host's call, classic and dynamic; then unlearn under dynamic."""
    model = built("sd1", dtype)
    before, diff = digest(model), diff_of(model, 0.02 if rank else 0.1, rank)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))

    def asked(patcher: Any) -> torch.Tensor:
        lent = part("nodes.lending").lend(patcher, Clip(), 64)
        return lent.host(x, torch.full((2,), 600), lent.encoder.encode(["a gun", "a cat"]))

    plain, classic = asked(model), asked(part("nodes.patching").patched(model, diff))
    mm.unload_all_models()
    with dynamic(resident):
        fluid = Dynamic(model.model, PLACE, torch.device("cpu"))
        own = asked(part("nodes.patching").patched(fluid, diff))
        layer = model.model.diffusion_model.get_submodule(KEY.removesuffix(".weight"))
        patched = layer.weight_lowvram_function is not None
        back = asked(fluid)
        report = unlearned(fluid)
        gc.collect()  # what needs it dies together: the host would lose the model for good
        unload()
    return {
        "moved": float((classic - plain).abs().max()),
        "apart": float((own - classic).abs().max()),
        "back": float((back - plain).abs().max()),
        "patched": patched,
        "restored": digest(model) == before,
        "report": report,
    }


def unlearned(model: Any) -> str:
    """Unlearn with our node, through a private UNet made while weights come lazily."""
    concept = part("nodes.concept").TrustConcept().describe("gun", "single", preserve="cat, dog")
    settings = part("nodes.settings").Settings({"trajectory_steps": 2, "passes": 32}, 64)
    part("nodes.settings").EFFORTS["tiny"] = 4 / part("nodes.settings").DEFAULTS["steps"]
    told = part("nodes.unlearn").TrustUnlearn().unlearn(
        model, Clip(), concept[0], "csr", "global", "tiny", 0.03, False, 0, settings=settings
    )  # fmt: skip
    after, _, _, report = told["result"]
    lent = part("nodes.lending").lend(after, Clip(), 64)
    lent.host(torch.randn(1, 4, 8, 8), torch.tensor([600]), lent.encoder.encode(["a gun"]))
    return report


def main() -> None:
    """Do what is asked and write down what was found."""
    told = json.loads(TOLD)
    pack()
    work = {"lost": lost, "drawn": drawn}[told["what"]]
    found = {"absent": True}
    if hasattr(comfy.lora, "prefetch_prepared_value"):
        more = {"rank": told["rank"]} if "rank" in told else {}
        found = work(getattr(torch, told["dtype"]), told["resident"], **more)
    with open(OUT, "w", encoding="utf-8") as out:
        json.dump(found, out)


main()
