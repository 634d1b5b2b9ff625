"""AUTOMATIC1111: an ldm or sgm UNet of plain parameters; diffs go on as networks of its Lora."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from modules import (
    devices,
    prompt_parser,
    sd_hijack,
    sd_models,
    sd_samplers_common,
    sd_unet,
    shared,
)
from torch import Tensor, nn

from trust_engine.diff.weight_diff import Offset
from trust_engine.errors import DiffError, ModelError
from trust_engine.models.contract import Conditioning, NoiseSchedule

from . import demo_a1111
from .host import HERE, Host, Part, kept_attributes, named_schedule
from .proof import prove

OURS = "trust:"  # begins the names of the networks that are ours
# Where the Lora extension keeps what a layer had before.
BACKUPS = {"weight": "network_weights_backup", "bias": "network_bias_backup"}


class A1111(Host):
    """AUTOMATIC1111's web UI, 1.9 and newer."""

    name = "AUTOMATIC1111"

    @property
    def model(self) -> Any:
        """Return the loaded model."""
        model = shared.sd_model
        if model is None or getattr(model, "model", None) is None:
            raise ModelError("no checkpoint is loaded; choose one at the top of the page")
        return model

    @property
    def ready(self) -> bool:
        """Tell whether a model is loaded; asking `shared.sd_model` would load one."""
        return sd_models.model_data.sd_model is not None

    @property
    def unet(self) -> nn.Module:
        """Return the ldm or sgm UNet."""
        unet = getattr(self.model.model, "diffusion_model", None)
        if unet is None:
            raise ModelError(f"{HERE} has no UNet; TRUST Unlearn works with SD 1.x, 2.x and SDXL")
        return unet

    @property
    def schedule(self) -> NoiseSchedule:
        """Read alphas_cumprod and parameterization."""
        model = self.model
        alphas = getattr(model, "alphas_cumprod_original", None)
        alphas = model.alphas_cumprod if alphas is None else alphas
        return named_schedule(alphas, str(model.parameterization))

    def read(self, key: str) -> Tensor:
        """Read a weight, from the Lora extension's backup while it has changed the layer."""
        layer, _, kind = key.rpartition(".")
        module = self.unet.get_submodule(layer)
        if kind in BACKUPS and getattr(module, "network_current_names", ()):
            backup = getattr(module, BACKUPS[kind], None)
            if backup is not None:
                return backup
        return getattr(module, kind).detach()

    def forward(self) -> Callable[..., Tensor]:
        """Call apply_model, by which medvram brings the UNet to the GPU."""
        model = self.model
        sgm = bool(getattr(model, "is_sdxl", False))

        def forward(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            told = cond.to(devices.device)
            parts: dict[str, Any] = {"c_crossattn": [told.context]}
            if sgm:
                parts = {"crossattn": told.context, "vector": told.vector}
            needs = getattr(devices, "unet_needs_upcast", False)
            with devices.without_autocast() if needs else devices.autocast():
                out = model.apply_model(x.to(devices.device), t.to(devices.device), parts)
            return out.to(x.device)

        return forward

    def learned(self, prompts: Sequence[str], size: tuple[int, int]) -> Any:
        """Encode as processing does."""
        batch = prompt_parser.SdConditioning(list(prompts), width=size[1], height=size[0])
        with devices.autocast():
            return self.model.get_learned_conditioning(batch)

    @property
    def emphasis(self) -> bool:
        """Tell whether the host reads brackets in prompts as emphasis."""
        return getattr(shared.opts, "emphasis", "Original") != "None"

    def embeddings(self) -> Sequence[Any]:
        """List the tables in which the host looks up embeddings by the names among the words."""
        table = getattr(sd_hijack.model_hijack, "embedding_db", None)
        return [table] if hasattr(table, "ids_lookup") else []

    def count_tokens(self, prompt: str) -> int:
        """Count as the counter beside the prompt does."""
        return int(sd_hijack.model_hijack.get_prompt_lengths(prompt)[0])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode by the VAE and the method that Settings choose, picture by picture."""
        made = []
        for row in latents:
            z = row[None].to(devices.device)
            made.append(sd_samplers_common.decode_first_stage(self.model, z).float().cpu())
        return torch.cat(made).clamp(-1, 1)

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[list[str]]:
        """Take LoRAs and hypernetworks off; they come back with the next generation."""
        self._refuse()
        said: list[str] = []
        networks = sys.modules.get("networks")
        worn = list(networks.loaded_networks) if networks else []
        if worn:
            names = ", ".join(net.name for net in worn if not net.name.startswith(OURS))
            if names:
                said.append(f"LoRAs in use ({names}) were taken off: the checkpoint itself is used")
            networks.loaded_networks.clear()
        self._settle(networks)
        with kept_attributes(shared, "parallel_processing_allowed", "loaded_hypernetworks"):
            shared.parallel_processing_allowed = False
            shared.loaded_hypernetworks = []
            yield said

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Need nothing: parameters are plain and blocks write to nothing that is kept."""
        yield

    def bring(self) -> None:
        """Let medvram fetch the UNet, which it puts away for every prompt and decoded picture."""
        inner = self.model.model
        for fetch in list(inner._forward_pre_hooks.values()):
            fetch(inner, ())

    def _refuse(self) -> None:
        options = shared.cmd_opts
        if getattr(options, "lowvram", False):
            raise ModelError(
                "with --lowvram the UNet is never on the GPU as a whole; start with --medvram"
            )
        if getattr(self.model, "is_ssd", False):
            raise ModelError(f"{HERE} is SSD-1B; distilled variants are not supported")
        _refuse_other_unets()
        _ = self.family, self.schedule
        self.check_precision()

    @torch.no_grad()  # scripts are told of a finished picture, and jobs run, with gradients on
    def _settle(self, networks: Any) -> None:
        """Let the Lora extension bring every layer to the networks that are loaded now."""
        if networks is None:
            return
        mapping = getattr(self.model, "network_layer_mapping", {})
        for layer in {id(m): m for m in mapping.values()}.values():
            if getattr(layer, "network_current_names", ()):
                networks.network_apply_weights(layer)

    @torch.no_grad()
    def put(self, p: Any, parts: Sequence[Part]) -> None:
        """Append one network for each diff to the Lora extension's, and bring them on now."""
        networks, network = sys.modules.get("networks"), sys.modules.get("network")
        _refuse_other_unets()
        if networks is None or network is None:
            raise DiffError("the built-in extension Lora is off, by which diffs are applied; "
                            "switch it on in Extensions and restart")  # fmt: skip
        loaded = networks.loaded_networks
        loaded[:] = [net for net in loaded if not net.name.startswith(OURS)]
        for part in parts:
            loaded.append(self._network(network, part))
        if not _functional():
            for layer in self._touched(parts):
                networks.network_apply_weights(layer)
        prove(_Weights(self.unet, networks), parts, self.name)

    def reached(self, parts: Sequence[Part]) -> bool:
        """Tell whether every layer was computed under our networks, none of them with errors.

        Raises DiffError when they are no longer in the weights.
        """
        networks = sys.modules["networks"]
        names = {OURS + part.sha for part in parts}
        failed = getattr(getattr(networks, "extra_network_lora", None), "errors", {})
        if names & set(failed) or not names <= {net.name for net in networks.loaded_networks}:
            return False
        if not _functional() and not all(
            names <= {told[0] for told in getattr(layer, "network_current_names", ())}
            for layer in self._touched(parts)
        ):
            return False
        prove(_Weights(self.unet, networks), parts, self.name)
        return True

    def clear(self) -> None:
        """Take our networks out, and let the layers get their weights back."""
        networks = sys.modules.get("networks")
        if networks is None:
            return
        loaded = networks.loaded_networks
        if any(net.name.startswith(OURS) for net in loaded):
            loaded[:] = [net for net in loaded if not net.name.startswith(OURS)]
            self._settle(networks)

    def unet_of(self, model: Any) -> nn.Module:
        """Return the UNet of a model that the host has just loaded."""
        unet = getattr(getattr(model, "model", None), "diffusion_model", None)
        return unet if isinstance(unet, nn.Module) else nn.Module()

    def know_demo(self, folder: Path, checkpoints: Sequence[Path]) -> None:
        """Write the .yaml beside the checkpoints."""
        demo_a1111.write_shapes(folder, checkpoints)

    def see_demo(self, model: Any, small: Any) -> None:
        """Let the first stage decode and encode by the small autoencoder."""
        demo_a1111.see(model, small)

    def _touched(self, parts: Sequence[Part]) -> list[nn.Module]:
        unet = self.unet
        keys = dict.fromkeys(key for part in parts for key in part.diff.offsets)
        return [unet.get_submodule(key.rpartition(".")[0]) for key in keys]

    def _network(self, network: Any, part: Part) -> Any:
        """Build a network of the Lora extension out of a diff."""
        told = SimpleNamespace(name=part.name, filename=part.name, shorthash="", hash="")
        net = network.Network(OURS + part.sha, told)
        net.mentioned_name = None
        net.unet_multiplier, net.dyn_dim = part.strength, None
        kind, unet = _offset_module(network), self.unet
        layers: dict[str, dict[str, Offset]] = {}
        for key, offset in part.diff.offsets.items():
            path, _, last = key.rpartition(".")
            layers.setdefault(path, {})[last] = offset
        for path, own in layers.items():
            layer = unet.get_submodule(path)
            name = getattr(layer, "network_layer_name", None)
            if name is None:
                raise DiffError(f"{part.name}: the Lora extension cannot change {path}")
            weights = network.NetworkWeights(f"{path}.weight", name, {}, layer)
            net.modules[name] = kind(net, weights, own.get("weight"), own.get("bias"))
        return net


def _refuse_other_unets() -> None:
    """Raise ModelError where something else draws in the UNet's place, untouched by our work."""
    if getattr(sd_unet, "current_unet", None) is not None:
        raise ModelError("an SD Unet (TensorRT) is in use; choose SD Unet: None in Settings")


def _functional() -> bool:
    """Tell whether networks are added while a layer computes, the Lora extension's old way."""
    return bool(getattr(shared.opts, "lora_functional", False))


class _Weights:
    """The UNet's weights under the networks that are loaded now."""

    def __init__(self, unet: nn.Module, networks: Any) -> None:
        self.unet, self.networks = unet, networks

    def drawn(self, key: str) -> Tensor:
        """Read what a layer has; in the old way, let the layer compute what it amounts to."""
        layer, kind = self._layer(key)
        if not _functional():
            return getattr(layer, kind)
        # y = W x + b, by the layer itself: its answers to the unit vectors and to nothing, b.
        units = torch.eye(layer.in_features, device=layer.weight.device, dtype=layer.weight.dtype)
        with devices.autocast():
            *made, bias = layer(torch.cat([units, torch.zeros_like(units[:1])])).float()
        return bias if kind == "bias" else (torch.stack(made) - bias).T

    def without(self, key: str) -> Tensor:
        """Add the user's networks to what the checkpoint has, as the extension does."""
        layer, kind = self._layer(key)
        exact, backup = (getattr(layer, name, None) for name in (f"fp16_{kind}", BACKUPS[kind]))
        now = getattr(layer, kind)
        value = now if backup is None else backup
        value = (value if exact is None else exact).detach().to(now.device).float()
        for net in self.networks.loaded_networks:
            module = net.modules.get(layer.network_layer_name)
            if module is not None and not net.name.startswith(OURS):
                weight = value if kind == "weight" else layer.weight
                change = module.calc_updown(weight.to(layer.weight.dtype))[kind == "bias"]
                value = value if change is None else value + change.float()
        return value

    def way(self, key: str) -> str:
        """Name the layer's class, as the extension patches each; in the old way Linear alone."""
        layer, kind = self._layer(key)
        if _functional() and not isinstance(layer, nn.Linear):
            return ""
        return f"{type(layer).__name__}, {kind}"

    def _layer(self, key: str) -> tuple[Any, str]:
        path, _, kind = key.rpartition(".")
        return self.unet.get_submodule(path), kind


def _offset_module(network: Any) -> type:
    """Make a module of the Lora extension that holds a weight's offset as a diff does."""

    class OffsetModule(network.NetworkModule):
        """The offsets of a layer's weight and bias; dense only while they are added."""

        def __init__(
            self, net: Any, weights: Any, offset: Offset | None, bias: Offset | None
        ) -> None:
            super().__init__(net, weights)
            self.offset, self.ours = offset, bias  # `bias` has a meaning of the host's

        def calc_updown(self, target: Tensor) -> Any:
            """Return strength times the offsets of weight and bias, float32."""
            device, shape = target.device, target.shape
            if self.offset is not None:
                change, shape = self.offset.dense(device), self.offset.shape
            else:
                change = torch.zeros(shape, device=device)
            bias = None if self.ours is None else self.ours.dense(device)
            return self.finalize_updown(change, target, list(shape), bias)

    return OffsetModule
