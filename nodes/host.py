"""The host's UNet on loan: called the host's own way, watched by one of the host's own patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakMethod

import comfy.model_management as mm
import torch
from torch import Tensor, nn

from ..trust_engine.errors import ModelError
from ..trust_engine.models.contract import Conditioning, NoiseSchedule, Prediction
from ..trust_engine.models.unet_families import family_of
from .weights import Weights

ROWS = 16  # of a batch that the UNet gets at once, memory permitting
TIMESTEPS = 1000
REFUSED = {"EDM", "X0", "IMG_TO_IMG", "CONST", "COSMOS_RFLOW", "LCM"}
TEXT = "TRUST Unlearn works with SD 1.x, SD 2.x and SDXL"
See = Callable[[str, Tensor, Tensor], None]


class _Linear:
    """One linear layer's weights, read when asked for."""

    def __init__(self, read: Callable[[str], Tensor], name: str, bias: bool) -> None:
        self._read, self._name, self._bias = read, name, bias

    @property
    def weight(self) -> Tensor:
        return self._read(f"{self._name}.weight")

    @property
    def bias(self) -> Tensor | None:
        return self._read(f"{self._name}.bias") if self._bias else None


class Site(nn.Module):
    """Stands for one cross-attention layer: holds the engine's hooks, and reads its weights."""

    def __init__(self, name: str, heads: int, weights: Weights, device: torch.device) -> None:
        super().__init__()

        def read(key: str) -> Tensor:
            return weights.read(key).to(device)

        self.heads = heads
        self.to_q, self.to_k, self.to_v = (_Linear(read, f"{name}.to_{c}", False) for c in "qkv")
        self.to_out = [_Linear(read, f"{name}.to_out.0", f"{name}.to_out.0.bias" in weights.shapes)]

    def forward(self, x: Tensor) -> Tensor:
        """Pass on the positions x (b, n, d) that enter the layer, for hooks to see."""
        return x


class StandIn(nn.Module):
    """The UNet as the engine sees it: cross-attention only, nothing of it shared with the host."""

    def __init__(self, sites: Mapping[str, Site], weights: Weights, place: torch.device) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(0, device=place), requires_grad=False)
        self.__dict__["weights"] = weights
        for name, site in sites.items():
            here: nn.Module = self
            *folders, last = name.split(".")
            for folder in folders:
                if folder not in here._modules:
                    here.add_module(folder, nn.Module())
                here = here.get_submodule(folder)
            here.add_module(last, site)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield a marker of where the UNet computes, then the q/k/v weights, each read anew."""
        yield "place", self.place
        for key in self.weights.projections:
            yield key, nn.Parameter(self.weights.read(key), requires_grad=False)


class HostDenoiser:
    """The engine's Denoiser on a MODEL: patches, LoRAs, wrappers and memory rules as in the host.

    see: called with (layer, x (b, n, d), context (b, tokens, c)) whenever a layer is entered.
    """

    def __init__(self, model: Any, see: See | None = None) -> None:
        self.schedule = schedule_of(model)
        self.patcher = model.clone()  # its options are copies: the patch below is ours alone
        self.patcher.set_model_attn2_patch(_weakly(self._enter))
        self.device = model.load_device
        self.weights = Weights(self.patcher)
        self.storage = self.weights.check_storage()  # a warning, or None
        self.sites = _sites(model, self.weights, self.device)
        self.module = StandIn(self.sites, self.weights, self.device)
        self.see, self.rows = see, ROWS
        self.preview: Tensor | None = None  # x0 (1, 4, h, w) of the latest call
        self._entered: set[str] = set()
        # The engine's hooks want a batch whole: what its parts show is kept until all have run.
        self._held: dict[str, list[Tensor]] | None = None

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict eps or v: x (b, 4, h, w), t (b,) in 0..999 -> (b, 4, h, w)."""
        rows = self._ready(tuple(x.shape))
        self._held = {name: [] for name in self.sites} if rows < len(x) else None
        parts = [
            self._predict(x[i : i + rows], t[i : i + rows], cond.select(slice(i, i + rows)))
            for i in range(0, len(x), rows)
        ]
        for name, seen in (self._held or {}).items():
            self.sites[name](torch.cat(seen))
        self._held = None
        return torch.cat(parts)  # a copy: out of inference mode an ordinary tensor

    def checkpoint_key(self, name: str) -> str:
        """Return the name as it is: the host uses ldm names."""
        return name

    def parameter_name(self, key: str) -> str:
        """Return the name as it is: the host uses ldm names."""
        return key

    @torch.inference_mode()  # the host's weights are inference tensors, and it may move them
    def _ready(self, shape: tuple[int, ...]) -> int:
        """Have the host load the model and make room; returns the rows that fit at once."""
        mm.throw_exception_if_processing_interrupted()
        rows = min(self.rows, shape[0])
        extra = getattr(self.patcher, "get_nested_additional_models", list)()
        mm.load_models_gpu(
            [self.patcher, *extra],
            memory_required=self._memory((rows, *shape[1:])),
            minimum_memory_required=self._memory((1, *shape[1:])),
        )
        # A host that fills the memory on purpose tells its patcher alone what it would give back.
        free = getattr(self.patcher, "get_free_memory", mm.get_free_memory)(self.device)
        while rows > 1 and self._memory((rows, *shape[1:])) * 1.5 > free:
            rows = (rows + 1) // 2
        return max(1, rows)

    def _memory(self, shape: tuple[int, ...]) -> float:
        return float(self.patcher.model.memory_required(list(shape)))

    @torch.inference_mode()
    def _predict(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        mm.throw_exception_if_processing_interrupted()
        a = self.schedule.alphas.to(self.device)[t.to(self.device)]
        sigma = ((1 - a) / a).sqrt()
        wide = sigma.view(-1, 1, 1, 1)
        y = x.to(self.device, torch.float32) * (1 + wide**2).sqrt()
        self._entered.clear()
        x0 = self._call(y, sigma, cond.to(self.device)).float()
        if missed := set(self.sites) - self._entered:
            raise ModelError(
                f"the model's cross-attention cannot be watched at {sorted(missed)[0]}: another "
                "node has replaced it; connect the model from before that node"
            )
        self.preview = x0[:1]
        if self.schedule.prediction == "v":
            return (y / (1 + wide**2) - x0) * (1 + wide**2).sqrt() / wide
        return (y - x0) / wide

    def _call(self, y: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Return x0 from the host's apply_model, through a wrapper if the MODEL has one."""
        model, options = self.patcher.model, self.patcher.model_options
        parts: dict[str, Any] = {"c_crossattn": cond.context}
        if cond.vector is not None:
            parts["y"] = cond.vector
        parts["transformer_options"] = {
            **options.get("transformer_options", {}),
            "wrappers": _wrappers(self.patcher, options),
            "cond_or_uncond": [0],
            "sigmas": sigma,
        }
        if hasattr(self.patcher, "pre_run"):
            self.patcher.pre_run()
        try:
            wrapper = options.get("model_function_wrapper")
            if wrapper is None:
                return model.apply_model(y, sigma, **parts)
            told = {"input": y, "timestep": sigma, "c": parts, "cond_or_uncond": [0]}
            return wrapper(model.apply_model, told)
        finally:
            if hasattr(self.patcher, "cleanup"):
                self.patcher.cleanup()

    def _enter(self, n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> Any:
        """Be the host's attn2_patch: look, and hand everything on unchanged."""
        name = layer_name(options["block"], options["block_index"])
        self._entered.add(name)
        if self._held is None:
            self.sites[name](n)
        else:
            self._held[name].append(n.detach().cpu())  # the batch was split for want of memory
        if self.see is not None:
            self.see(name, n, context)
        return n, context, value


def layer_name(block: tuple[str, int], index: int) -> str:
    """Translate the host's place of a transformer block to the layer's ldm name."""
    side, number = block[0], block[1]
    stem = "middle_block" if side == "middle" else f"{side}_blocks.{number}"
    return f"{stem}.1.transformer_blocks.{index}.attn2"


def _weakly(enter: Callable[..., Any]) -> Callable[..., Any]:
    """Call a method of an object that this does not keep alive.

    A clone in a circle with its own patch dies by garbage collection, in one go with the clones
    that it was made from; the host, which then looks for the next older one, finds none and keeps
    the model in memory for good.
    """
    method = WeakMethod(enter)

    def entered(n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> Any:
        here = method()
        return (n, context, value) if here is None else here(n, context, value, options)

    return entered


def _sites(model: Any, weights: Weights, device: torch.device) -> dict[str, Site]:
    unet = model.model.diffusion_model
    names = [name for name, _ in unet.named_modules() if name.endswith(".attn2")]
    if not names:
        raise ModelError(f"the UNet has no cross-attention layers named attn2; {TEXT} models")
    return {n: Site(n, int(unet.get_submodule(n).heads), weights, device) for n in names}


def _wrappers(patcher: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the MODEL's own wrappers with those of its options, as the host's sampler does."""
    merged: dict[str, Any] = {}
    named = options.get("transformer_options", {}).get("wrappers", {})
    for source in (named, getattr(patcher, "wrappers", {})):
        for kind, keyed in source.items():
            here = merged.setdefault(kind, {})
            for key, functions in keyed.items():
                here[key] = [*here.get(key, []), *functions]
    return merged


def schedule_of(model: Any) -> NoiseSchedule:
    """Read schedule and prediction, and refuse what the engine cannot do; raises ModelError."""
    inner = getattr(model, "model", None)
    unet = getattr(inner, "diffusion_model", None)
    kind = type(inner).__name__
    if unet is None or not any(n.endswith(".attn2") for n, _ in unet.named_modules()):
        raise ModelError(f"this model ({kind}) has no cross-attention UNet; {TEXT}, not with it")
    sampling = model.get_model_object("model_sampling")
    lineage = {base.__name__ for base in type(sampling).__mro__}
    sigmas = getattr(sampling, "sigmas", None)
    if lineage & REFUSED or sigmas is None or len(sigmas) != TIMESTEPS:
        what = ", ".join(sorted(lineage & REFUSED)) or "another noise schedule"
        raise ModelError(f"this model ({kind}) samples by {what}; {TEXT}, which predict eps or v")
    channels = dict(inner.model_config.unet_config).get("in_channels", 4)
    if channels != 4 or kind == "SD21UNCLIP":
        raise ModelError(f"this is an inpainting, edit or unCLIP model ({kind}, {channels} input "
                         f"channels); {TEXT} text-to-image models")  # fmt: skip
    prediction: Prediction = "v" if "V_PREDICTION" in lineage else "eps"
    sigmas = sigmas.detach().to("cpu", torch.float32, copy=True)
    return NoiseSchedule(1 / (1 + sigmas**2), prediction)


def family_named(weights: Weights) -> str | None:
    """Name the model's family, None for one without a name."""
    return family_of(weights.shapes)


def latent_side(weights: Weights, prediction: Prediction) -> int:
    """Return the side of a latent in the size that the model was trained at."""
    name = family_named(weights) or ""
    sides = {"sd1": 64, "sd2": 96 if prediction == "v" else 64, "sdxl": 128}
    return 16 if name.startswith("demo") else sides.get(name, 64)
