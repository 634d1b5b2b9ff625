"""A small ComfyUI: its awkward facts, without its code.

Weights are inference tensors; a loaded MODEL's patches are written into the module that all its
clones share; get_key_patches gives the base and the list; progress raises on interrupt.
"""

from __future__ import annotations

import copy
import sys
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fakes.comfy_unet import CONTEXT, TOKENS, FakeUNet

PREFIX = "diffusion_model."


class InterruptProcessingException(Exception):
    """What the host raises, a subclass of Exception."""


class Host:
    """Switches and records of the pretended host."""

    def __init__(self) -> None:
        self.interrupt = InterruptProcessingException
        self.interrupt_at: int | None = None  # the number of the progress update that raises
        self.updates = 0
        self.events: list[tuple[str, dict]] = []
        self.client: str | None = "browser"  # who queued the prompt that runs; None: an API call
        self.loaded: Any = None  # (MODEL's uuid, BaseModel, backup): the host holds no MODEL
        self.state_dicts = 0  # how often a whole state dict was made
        self.reclaimable = 0.0  # memory that a patcher's host would free for a batch
        self.free = 1e9  # memory that lies free
        self.dynamic = False  # weights are cast and patched where they are used, as on a GPU
        self.out_of_memory = 0  # how many UNet calls run out of memory
        self.most_rows = 0
        self.room: int | None = None  # rows of a batch that memory has room for
        self.press_at: int | None = None  # the number of the UNet pass in which Cancel is pressed
        self.pressed = False
        self.passes = self.late = 0  # UNet passes; those begun after Cancel was pressed

    def begin_pass(self, rows: int) -> None:
        """Count a UNet pass, of the model or of a private copy."""
        if self.room is not None and rows > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")
        self.passes += 1
        self.late += self.pressed
        if self.passes == self.press_at:
            self.pressed, self.press_at = True, None

    def check(self) -> None:
        """Raise the interrupt that was asked for, once."""
        if self.pressed:
            self.pressed = False
            raise self.interrupt()


class EPS:
    """Predicts the noise."""

    def denoised(self, sigma: Tensor, output: Tensor, y: Tensor) -> Tensor:
        return y - output * sigma.view(-1, 1, 1, 1)


class V_PREDICTION(EPS):
    """Predicts v."""

    def denoised(self, sigma: Tensor, output: Tensor, y: Tensor) -> Tensor:
        s = sigma.view(-1, 1, 1, 1)
        return y / (s**2 + 1) - output * s / (s**2 + 1) ** 0.5


class CONST:
    """Flow matching, as in Flux and SD3."""


def sampling_of(kind: type, steps: int = 1000) -> Any:
    """Make the host's model_sampling object."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64).square()
    alphas = (1 - betas).cumprod(0)
    own = type("ModelSampling", (kind,), {})()
    own.sigmas = ((1 - alphas) / alphas).sqrt().float()
    return own


class LatentFormat:
    """Latents unscaled, with colours for previews."""

    scale_factor = 1.0
    latent_rgb_factors = ((0.3, 0.2, 0.3), (0.3, 0.5, 0.2), (-0.3, 0.2, 0.3), (-0.2, -0.3, -0.7))

    def process_out(self, latent: Tensor) -> Tensor:
        return latent / self.scale_factor


class BaseModel:
    """What MODELs share."""

    def __init__(self, host: Host, unet: nn.Module, config: dict, sampling: Any, adm: int) -> None:
        self.host, self.diffusion_model, self.adm = host, unet, adm
        self.model_config = SimpleNamespace(unet_config=config)
        self.model_sampling, self.latent_format = sampling, LatentFormat()
        self.convert: Any = None  # how a layer's weight is read, None: as it is

    def memory_required(self, shape: list[int]) -> float:
        return float(shape[0])

    def encode_adm(self, **told: Any) -> Tensor | None:
        if not self.adm:
            return None
        return torch.cat([told["pooled_output"], torch.full((1, 1), told["width"] / 1000)], 1)

    def apply_model(
        self, x: Tensor, t: Tensor, c_crossattn: Tensor, transformer_options: dict, **extra: Any
    ) -> Tensor:
        self.host.most_rows = max(self.host.most_rows, len(x))
        if self.host.out_of_memory:
            self.host.out_of_memory -= 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")
        log = self.model_sampling.sigmas.log()
        step = (t.log()[None] - log[:, None]).abs().argmin(0)
        scaled = x / (t.view(-1, 1, 1, 1) ** 2 + 1) ** 0.5
        output = self.diffusion_model(
            scaled,
            step.float(),
            context=c_crossattn,
            transformer_options=transformer_options,
            **extra,
        )
        return self.model_sampling.denoised(t, output.float(), x)

    def write(self, values: dict[str, Tensor]) -> None:
        """Exchange parameters as loading does."""
        for key, value in values.items():
            path, _, name = key.removeprefix(PREFIX).rpartition(".")
            owner = self.diffusion_model.get_submodule(path)
            owner._parameters[name] = nn.Parameter(value, requires_grad=False)


class Patcher:
    """The host's MODEL: clones share the module and the backup."""

    def __init__(self, model: BaseModel, backup: dict | None = None) -> None:
        self.model, self.backup = model, {} if backup is None else backup
        self.load_device = torch.device("cpu")
        self.patches: dict[str, list] = {}
        self.patches_uuid = uuid.uuid4()
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> Patcher:
        other = Patcher(self.model, self.backup)
        other.patches = {key: list(entries) for key, entries in self.patches.items()}
        other.patches_uuid = self.patches_uuid
        other.model_options = copy.deepcopy(self.model_options)
        return other

    def _state(self) -> dict[str, Tensor]:
        self.model.host.state_dicts += 1
        return {PREFIX + k: w for k, w in self.model.diffusion_model.state_dict().items()}

    def model_state_dict(self, prefix: str | None = None) -> dict[str, Tensor]:
        return {k: w for k, w in self._state().items() if k.startswith(prefix or "")}

    def add_patches(self, patches: dict, strength: float = 1.0, model: float = 1.0) -> list:
        known, taken = self._state(), []
        for key, value in patches.items():
            if key in known:
                self.patches.setdefault(key, []).append((strength, value, model, None, None))
                taken.append(key)
        self.patches_uuid = uuid.uuid4()
        return taken

    def get_key_patches(self, prefix: str | None = None) -> dict[str, list]:
        convert = self.model.convert or (lambda weight, **_: weight)
        return {
            key: [(self.backup.get(key, weight), convert), *self.patches.get(key, [])]
            for key, weight in self.model_state_dict(prefix).items()
        }

    def set_model_attn2_patch(self, patch: Any) -> None:
        patches = self.model_options["transformer_options"].setdefault("patches", {})
        patches["attn2_patch"] = [*patches.get("attn2_patch", []), patch]

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def get_free_memory(self, device: torch.device) -> float:
        return self.model.host.free + self.model.host.reclaimable

    def pre_run(self) -> None:
        self.model.current_patcher = self

    def cleanup(self) -> None:
        self.model.current_patcher = None


class Clip:
    """Words to rows by their hash; "(word:1.5)" has a weight, "embedding:x" two vectors.

    Escaped brackets are text, and an embedding's vectors are other objects each time, as in the
    host.
    """

    def __init__(self, pooled: int = 0, skip: int = 0) -> None:
        self.pooled, self.skip = pooled, skip

    def tokenize(self, text: str) -> dict[str, list]:
        entries = [(1, 1.0)]
        for word in text.lower().split()[: TOKENS - 2]:
            if word.startswith("embedding:"):
                entries += [(torch.full((CONTEXT,), float(i)), 1.0) for i in range(2)]
                continue
            bare, weight = word.replace("\\(", "(").replace("\\)", ")"), ""
            if bare == word and word.startswith("("):
                bare, _, weight = word.strip("()").partition(":")
            entries.append((100 + zlib.crc32(bare.encode()) % 49_000, float(weight or 1)))
        return {"l": [entries + [(2, 1.0)] * (TOKENS - len(entries))]}

    def encode_from_tokens(self, tokens: dict, return_pooled: bool = False) -> Any:
        with torch.inference_mode():
            rows = []
            for token, weight in tokens["l"][0]:
                if isinstance(token, torch.Tensor):
                    rows.append(token)
                    continue
                g = torch.Generator().manual_seed(token + self.skip)
                rows.append(weight * torch.randn(CONTEXT, generator=g))
            context = torch.stack(rows)
            context = context + 0.5 * context.cumsum(0) / torch.arange(1, TOKENS + 1).view(-1, 1)
            pooled = context[-1:, : self.pooled] if self.pooled else None
            return context[None], pooled


class Vae:
    """Decodes by a linear map, eight pixels a latent."""

    def decode(self, latents: Tensor) -> Tensor:
        colours = torch.tensor(LatentFormat.latent_rgb_factors)
        image = (latents.float().cpu().movedim(1, -1) @ colours).sigmoid()
        return image.repeat_interleave(8, 1).repeat_interleave(8, 2)


@torch.inference_mode()
def fake_model(
    host: Host, kind: type = EPS, dtype: torch.dtype = torch.float32, adm: int = 0, **config: Any
) -> Patcher:
    """Load a MODEL: all its weights are inference tensors."""
    steps = config.pop("timesteps", 1000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = FakeUNet(dtype=torch.float32)
    for weight in unet.parameters():
        weight.requires_grad_(False)
        weight.data = (weight.data * 2).to(dtype)
    told = {"in_channels": 4, "dtype": dtype, **config}
    return Patcher(BaseModel(host, unet, told, sampling_of(kind, steps), adm))


@contextmanager
def installed(host: Host, models: Path, sparse: bool = True) -> Iterator[None]:
    """Put the pretended modules into sys.modules for a while."""
    from fakes.comfy_modules import modules_of

    modules: dict[str, ModuleType] = modules_of(host, models, sparse)
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    FakeUNet.begin = host.begin_pass
    try:
        yield
    finally:
        FakeUNet.begin = None
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
