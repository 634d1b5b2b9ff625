"""A pretended AUTOMATIC1111 with a narrow demo model, and a Lora extension with its backups.

The UNet is ldm's own class where `stable-diffusion-sdkit` is installed.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fakes.webui import module
from fakes.webui_taesd import taesd
from fakes.webui_text import count, encode
from toys.demo import narrow_demo
from toys.tiny import LdmUNet
from trust_engine.models.demo_architecture import SHAPE
from trust_engine.models.load import LoadedModel
from trust_engine.models.unet_keys import KeyMap


def real_unet(weights: dict[str, Tensor]) -> nn.Module:
    """Build ldm's UNetModel in the narrow demo's shape; raises ImportError without ldm."""
    if find_spec("omegaconf") is None:  # only a type to compare with is asked of it
        config = module("omegaconf.listconfig", ListConfig=type("ListConfig", (), {}))
        sys.modules["omegaconf"] = module("omegaconf", listconfig=config)
        sys.modules["omegaconf.listconfig"] = config
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        unet = UNetModel(
            image_size=16, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=1,
            attention_resolutions=[1, 2], channel_mult=(1, 1, 1), num_heads=4,
            use_spatial_transformer=True, transformer_depth=1, context_dim=96, legacy=False,
            use_checkpoint=False,
        )  # fmt: skip
    unet.load_state_dict({name: w.clone() for name, w in weights.items()}, assign=True)
    return unet.eval()


class Inner(nn.Module):
    """DiffusionWrapper, at which medvram's hook sits."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = unet

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Call the UNet."""
        return self.diffusion_model(x, t, context=context)


class FakeA1111:
    """The host: its model, its Lora extension, its sampler."""

    def __init__(self, ldm: bool = False, demo: LoadedModel | None = None) -> None:
        self.demo = demo or narrow_demo()
        unet = self.demo.denoiser.module
        keys = KeyMap(SHAPE)
        self.weights = {keys.to_ldm(k): w.clone() for k, w in unet.state_dict().items()}
        self.unet = real_unet(self.weights) if ldm else LdmUNet(unet, SHAPE)
        self.unet.requires_grad_(True)  # as the host's is
        self.networks = Networks()
        self.options: Any = None
        self.prompt_seen: Any = None
        self.model = SimpleNamespace(
            model=Inner(self.unet), is_sdxl=False, is_ssd=False,
            alphas_cumprod=self.demo.denoiser.schedule.alphas, parameterization="eps",
            sd_checkpoint_info=SimpleNamespace(filename="/nowhere/demo.safetensors"),
            apply_model=self.apply_model, decode_first_stage=self._decode,
            get_learned_conditioning=self._encode, first_stage_model=nn.Module(),
        )  # fmt: skip
        self.model.network_layer_mapping = {}
        for name, layer in self.unet.named_modules():
            layer.network_layer_name = "diffusion_model_" + name.replace(".", "_")
            self.model.network_layer_mapping[layer.network_layer_name] = layer
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.forward = self._patched(layer)  # type: ignore[method-assign]

    def _patched(self, layer: Any) -> Any:
        """Be what the Lora extension puts in the place of a layer class's forward."""
        original = layer.forward

        def forward(x: Tensor) -> Tensor:
            if not getattr(self.options, "lora_functional", False):
                self.networks.network_apply_weights(layer)
                return original(x)  # type: ignore[no-any-return]
            self.networks.network_restore_weights_from_backup(layer)
            y = original(x)
            for net in self.networks.loaded_networks:
                part = net.modules.get(layer.network_layer_name)
                if part is not None:
                    # Where a layer is not linear the host calls its own function likewise.
                    y = y + nn.functional.linear(x, *part.calc_updown(layer.weight))
            return y  # type: ignore[no-any-return]

        return forward

    def apply_model(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        """Call the UNet as LatentDiffusion does, in the UNet's own type."""
        kind = next(self.unet.parameters()).dtype
        context = torch.cat(cond["c_crossattn"], 1).to(kind)
        return self.model.model(x.to(kind), t, context).to(x.dtype)

    def medvram(self) -> None:
        """Keep one part on the GPU, which the others' hooks fetch; the UNet runs only there."""
        self.on_gpu = "text"

        def fetch(*_: Any) -> None:
            self.on_gpu = "unet"

        def check(*_: Any) -> None:
            assert self.on_gpu == "unet", "the UNet's weights are on the CPU, and x is not"

        self.model.model.register_forward_pre_hook(fetch)
        self.unet.register_forward_pre_hook(check)

    def _encode(self, prompts: Any) -> Tensor:
        self.on_gpu = "text"
        return encode(self.demo, prompts)

    def _decode(self, latents: Tensor) -> Tensor:
        self.on_gpu = "vae"
        return self.demo.decoder(latents)

    def half(self) -> None:
        """Hold the UNet in half precision."""
        self.unet.half()

    def modules(self, shared: Any) -> dict[str, ModuleType]:
        """Name the modules that only this host has."""
        shared.sd_model, self.options = self.model, shared.opts
        hijack = SimpleNamespace(get_prompt_lengths=lambda text: (count(text), 75))
        network = module(
            "network",
            Network=Network,
            NetworkModule=NetworkModule,
            NetworkWeights=lambda *parts: SimpleNamespace(sd_key=parts[1]),
        )
        return {
            "modules.sd_hijack": module("modules.sd_hijack", model_hijack=hijack),
            "modules.sd_models": module(
                "modules.sd_models",
                model_data=SimpleNamespace(sd_model=self.model),
                list_models=lambda: None,
            ),
            "modules.sd_vae_taesd": taesd(),
            "modules.sd_unet": module("modules.sd_unet", current_unet=None),
            "networks": self.networks,
            "network": network,
        }

    def activate(self, p: Any) -> None:
        """Rebuild the list of networks from the prompt, as every batch does."""
        self.networks.loaded_networks.clear()
        self.networks.extra_network_lora.errors.clear()
        self.networks.loaded_networks.extend(p.loras)

    def before_sampling(self, p: Any) -> None:
        """Need nothing."""

    def sampler(self) -> Any:
        """Make a sampler that takes one step."""
        return SimpleNamespace(sample=self._sample)

    @torch.no_grad()
    def _sample(self, p: Any) -> Tensor:
        x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
        cond = {"c_crossattn": [encode(self.demo, [p.prompt])]}
        return self.apply_model(x, torch.tensor([500]), cond)

    def bits(self) -> dict[str, Tensor]:
        """Take every weight down."""
        return {name: p.detach().clone() for name, p in self.unet.named_parameters()}


class Network:
    """network.Network."""

    def __init__(self, name: str, on_disk: Any) -> None:
        self.name, self.network_on_disk = name, on_disk
        self.te_multiplier = self.unet_multiplier = 1.0
        self.dyn_dim: Any = None
        self.modules: dict[str, Any] = {}
        self.bundle_embeddings: dict[str, Any] = {}


class NetworkModule:
    """network.NetworkModule."""

    def __init__(self, net: Network, weights: Any) -> None:
        self.network, self.sd_key = net, weights.sd_key

    def finalize_updown(
        self, updown: Tensor, weight: Tensor, shape: Any, ex_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Scale by the multiplier of the kind that the name tells."""
        net = self.network
        te = "transformer" in self.sd_key[:20]
        by = net.te_multiplier if te else net.unet_multiplier
        return updown.reshape(weight.shape) * by, None if ex_bias is None else ex_bias * by


class Lora(NetworkModule):
    """A stock LoRA's module: a dense offset."""

    def __init__(self, net: Network, key: str, offset: Tensor) -> None:
        super().__init__(net, SimpleNamespace(sd_key=key))
        self.offset = offset

    def calc_updown(self, weight: Tensor) -> Any:
        """Return the offset."""
        return self.finalize_updown(self.offset.clone(), weight, None)


class Networks(ModuleType):
    """The module `networks`: it keeps backups, and restores them when the networks change."""

    def __init__(self) -> None:
        super().__init__("networks")
        self.loaded_networks: list[Network] = []
        self.extra_network_lora = SimpleNamespace(errors={})

    @staticmethod
    def network_restore_weights_from_backup(layer: Any) -> None:
        """Give a layer the checkpoint's weight back."""
        if getattr(layer, "network_weights_backup", None) is not None:
            layer.weight.copy_(layer.network_weights_backup)  # no no_grad here, as in the host
        if getattr(layer, "network_bias_backup", None) is not None:
            layer.bias.copy_(layer.network_bias_backup)

    def network_apply_weights(self, layer: Any) -> None:
        """Bring a layer to the loaded networks; a wrong shape is counted, and nobody is told."""
        if getattr(layer, "weight", None) is None:
            return
        wanted = tuple(
            (n.name, n.te_multiplier, n.unet_multiplier, n.dyn_dim) for n in self.loaded_networks
        )
        if getattr(layer, "network_weights_backup", None) is None and wanted:
            layer.network_weights_backup = layer.weight.detach().to("cpu", copy=True)
            if getattr(layer, "bias", None) is not None:
                layer.network_bias_backup = layer.bias.detach().to("cpu", copy=True)
        if getattr(layer, "network_current_names", ()) == wanted:
            return
        self.network_restore_weights_from_backup(layer)
        with torch.no_grad():
            for net in self.loaded_networks:
                part = net.modules.get(layer.network_layer_name)
                if part is None:
                    continue
                try:
                    change, ex_bias = part.calc_updown(layer.weight)
                    layer.weight.copy_(
                        (layer.weight.to(change.dtype) + change).to(layer.weight.dtype)
                    )
                    if ex_bias is not None:
                        layer.bias.copy_((layer.bias + ex_bias).to(layer.bias.dtype))
                except RuntimeError:
                    errors = self.extra_network_lora.errors
                    errors[net.name] = errors.get(net.name, 0) + 1
        layer.network_current_names = wanted
