"""What both web UIs lend and take, in one shape; `current()` is the one we run in."""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trust_engine.demo.vocabulary import OBJECTS, STYLES
from trust_engine.diff import WeightDiff
from trust_engine.diff.apply import fingerprint_of
from trust_engine.errors import ModelError
from trust_engine.models import common_words
from trust_engine.models.contract import LentModel, ModuleDenoiser, NoiseSchedule
from trust_engine.models.families import SUPPORTED, ModelFamily, detect
from trust_engine.models.unet_keys import projection_of

from . import which_ui
from .text_encoder import HostEncoder, literal, without_embeddings

HERE = "the loaded checkpoint"
NOT_APPLIED = "TRUST diffs were not applied, so nothing was drawn"
ENTRY = "input_blocks.0.0.weight"  # of every UNet of Stable Diffusion, under its ldm name
FACTOR = 8  # pixels a latent
LEAST = 4.9e-08  # of the signal at the schedule's end: without any there is no noise level


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Part:
    """One diff of a generation: its file's name, the hash of its content, and its strength."""

    name: str
    sha: str
    diff: WeightDiff
    strength: float


class Host(ABC):
    """A web UI: its model for the engine, and diffs for its generations."""

    name: str
    in_place = False  # whether the UNet's blocks write to what they were given
    _printed: tuple[Any, str] | None = None

    @property
    @abstractmethod
    def model(self) -> Any:
        """Return the host's loaded model; raises ModelError when there is none."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Tell whether a model is loaded; asking loads none."""

    @property
    @abstractmethod
    def unet(self) -> nn.Module:
        """Return the UNet inside it."""

    @property
    @abstractmethod
    def schedule(self) -> NoiseSchedule:
        """Read the noise schedule; raises ModelError for one the engine does not know."""

    @abstractmethod
    def read(self, key: str) -> Tensor:
        """Read one of the UNet's weights as the checkpoint has it, without LoRAs and diffs."""

    @abstractmethod
    def forward(self) -> Callable[..., Tensor]:
        """Return the way to call the UNet: (x, t, conditioning) -> eps or v, on x's device."""

    @abstractmethod
    def learned(self, prompts: Sequence[str], size: tuple[int, int]) -> Any:
        """Encode prompts as a generation does."""

    @abstractmethod
    def count_tokens(self, prompt: str) -> int:
        """Count a prompt's tokens."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents (b, 4, h, w) into pictures (b, 3, 8h, 8w) in -1..1."""

    @abstractmethod
    def borrowed(self) -> contextlib.AbstractContextManager[list[str]]:
        """Have the model loaded and free of LoRAs for a while; yields what there is to say.

        What was taken off is put back afterwards: by this, or by the host's next generation.
        Raises ModelError for a model, or a way of running it, that cannot be worked with.
        """

    @abstractmethod
    def stepping(self) -> contextlib.AbstractContextManager[None]:
        """Surround everything that takes gradients through the UNet, backward included."""

    @abstractmethod
    def bring(self) -> None:
        """Have the UNet where it computes: the host may have moved it away for other work."""

    @abstractmethod
    def put(self, p: Any, parts: Sequence[Part]) -> None:
        """Put diffs on for the sampling that is about to begin; raises DiffError.

        Before the UNet is first asked, they are read back from the weights that it computes with.
        """

    @abstractmethod
    def reached(self, parts: Sequence[Part]) -> bool:
        """Tell whether the last sampling was done under these diffs; DiffError with a reason."""

    @abstractmethod
    def clear(self) -> None:
        """Take diffs off and put the checkpoint's weights back, unless the host does so itself."""

    def begin(self) -> None:  # noqa: B027 - most hosts need nothing
        """Teach the host what it has to know of us, when it loads this extension."""

    def end(self) -> None:  # noqa: B027
        """Undo `begin`, when the host unloads this extension."""

    @abstractmethod
    def unet_of(self, model: Any) -> nn.Module:
        """Return the UNet of a model that the host has just loaded."""

    @abstractmethod
    def know_demo(self, folder: Path, checkpoints: Sequence[Path]) -> None:
        """Teach the host the demo model's family; folder: its pipeline without weights."""

    @abstractmethod
    def see_demo(self, model: Any, small: Any) -> None:
        """Let a loaded demo model decode and encode by its own small autoencoder."""

    def on_its_thread(self, work: Callable[[], Any]) -> Any:
        """Run work where the host runs its own, and return its result or raise its error."""
        return work()

    @property
    def checkpoint(self) -> Path:
        """Return the loaded checkpoint's file."""
        return Path(self.model.sd_checkpoint_info.filename)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each of the UNet's weights under its ldm name."""
        return {name: tuple(p.shape) for name, p in self.unet.named_parameters()}

    @property
    def family(self) -> ModelFamily:
        """Recognise the model; raises ModelError for what the engine does not support."""
        shapes = self.shapes
        if ENTRY not in shapes:
            raise ModelError(
                f"{HERE} is not a Stable Diffusion UNet but a {type(self.unet).__name__}: Flux, "
                f"SD 3 and other transformers are not supported; this release reads {SUPPORTED}"
            )
        return detect(HERE, shapes)

    @property
    def identity(self) -> tuple[Any, ...]:
        """Tell checkpoints apart: the file, its time, and the number type it is held in."""
        # The file counts, not the model object: A1111 loads other weights into the same object.
        file, stored = self.checkpoint, next(self.unet.parameters()).dtype
        return (str(file), file.stat().st_mtime_ns if file.exists() else 0, stored)

    def fingerprint(self) -> str:
        """Hash the checkpoint's q/k/v weights, once for each checkpoint and number type."""
        known = self.identity
        if self._printed is None or self._printed[0] != known:
            keys = [key for key in self.shapes if projection_of(key)]
            self._printed = (known, fingerprint_of(keys, self.read))
        return self._printed[1]

    def lend(self, resolution: int = 0, between: Callable[[], None] = _nothing) -> LentModel:
        """Lend the model, within `borrowed`; resolution: side in pixels, 0 for the usual one.

        between: called before each prompt is encoded; what it raises ends the encoding.
        """
        family, schedule = self.family, self.schedule
        side = resolution // FACTOR
        size = (side, side) if side else family.sizes[schedule.prediction == "v"]
        pixels = (size[0] * FACTOR, size[1] * FACTOR)
        host = HostEncoder(self.learned, self.count_tokens, pixels, between)
        encoder = HostEncoder(self._spelled, self._count_spelled, pixels, between, host)
        denoiser = ModuleDenoiser(self.unet, schedule, self.forward(), _same, _same)
        usual = (common_words.THINGS, common_words.STYLES)
        things, styles = (tuple(OBJECTS), tuple(STYLES)) if family.emoji else usual
        return LentModel(denoiser, encoder, size, things, styles, in_place=self.in_place)

    def check_unpacked(self) -> None:
        """Raise ModelError for packed weights: no diff could be read back from them."""
        for name, weight in self.unet.named_parameters():
            if _packed(weight):
                raise ModelError(
                    f"{HERE} is packed into NF4 or GGUF ({name}), where no diff can be read back; "
                    "choose Diffusion in Low Bits: Automatic and load the float16 version"
                )

    @property
    def emphasis(self) -> bool:
        """Tell whether the host reads brackets in prompts as emphasis."""
        return True

    def embeddings(self) -> Sequence[Any]:
        """List the tables in which the host looks up embeddings by the names among the words."""
        return ()

    def _spelled(self, prompts: Sequence[str], size: tuple[int, int]) -> Any:
        with without_embeddings(self.embeddings()):
            return self.learned([literal(prompt, self.emphasis) for prompt in prompts], size)

    def _count_spelled(self, prompt: str) -> int:
        with without_embeddings(self.embeddings()):
            return self.count_tokens(literal(prompt, self.emphasis))

    def check_precision(self) -> None:
        """Raise ModelError for weights that are stored in fewer than 16 bits, or packed."""
        for name, weight in self.unet.named_parameters():
            if _packed(weight) or weight.dtype.itemsize < 2 or not weight.is_floating_point():
                raise ModelError(
                    f"{HERE} is held in low precision ({name}: {weight.dtype}); switch FP8, NF4 "
                    "or GGUF off (Forge: Diffusion in Low Bits: Automatic) and load the float16 "
                    "version"
                )

    def check_in_one_place(self) -> None:
        """Raise ModelError for a UNet that is spread over devices to save memory."""
        places = {weight.device for weight in self.unet.parameters()}
        if len(places) > 1:
            raise ModelError(
                "the UNet does not fit into the GPU's memory as a whole "
                f"({', '.join(map(str, places))}): give it more, or a smaller model"
            )


def named_schedule(alphas: Tensor, prediction: str) -> NoiseSchedule:
    """Take cumulative signal shares (1000,) and the host's word for what the UNet predicts."""
    words: Mapping[str, Any] = {"eps": "eps", "epsilon": "eps", "v": "v", "v_prediction": "v"}
    if prediction not in words or len(alphas) != 1000:
        raise ModelError(
            f"{HERE} predicts {prediction!r} over {len(alphas)} steps; "
            "TRUST Unlearn works with Stable Diffusion models that predict eps or v over 1000"
        )
    with torch.inference_mode(False):
        plain = alphas.detach().to("cpu", torch.float32).clone().clamp(min=LEAST)
    return NoiseSchedule(plain, words[prediction])


@functools.cache
def current() -> Host:
    """Return the host that we run in; raises ModelError in one that is not known."""
    kind = which_ui.kind()
    if kind == "neo":
        from .neo import Neo

        return Neo()
    if kind == "forge":
        from .forge import Forge

        return Forge()
    if kind == "a1111":
        from .a1111 import A1111

        return A1111()
    raise ModelError(which_ui.sentence())


def kept_attributes(owner: Any, *names: str) -> contextlib.AbstractContextManager[None]:
    """Put attributes back afterwards, those that were not there taken away."""
    return _kept(owner, names)


@contextlib.contextmanager
def _kept(owner: Any, names: Sequence[str]) -> Iterator[None]:
    missing = object()
    before = [(name, getattr(owner, name, missing)) for name in names]
    try:
        yield
    finally:
        for name, value in before:
            if value is missing:
                with contextlib.suppress(AttributeError):
                    delattr(owner, name)
            else:
                setattr(owner, name, value)


def _packed(weight: Any) -> bool:
    return hasattr(weight, "gguf_cls") or hasattr(weight, "bnb_quantized")


def _same(name: str) -> str:
    return name
