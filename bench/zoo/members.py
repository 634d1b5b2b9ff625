"""The zoo's members: how each is trained, packed, and written as an ordinary checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.world import pack as world
from bench.world.train_unet import SHIPPED
from bench.zoo import derived, english, sd3, siblings, text, towers
from bench.zoo.archive import Trained, Units, ZooError, path_of, read
from bench.zoo.files import SCHEDULER, demo_folder, index_of, write_file, write_folder
from bench.zoo.training import RUNS
from bench.zoo.unet import Job, train
from trust_engine.models.demo_architecture import UNET_CONFIG

Start = tuple[dict[str, Tensor], int]


@dataclass(frozen=True)
class Member:
    """One model: what it is, its training, what else an archive holds, and how it is written.

    job: None for one made of others; prepare: trains or restores what comes before the denoiser,
    up to a step for a trial; extra: further weights to pack, "text.NAME"; write: path of a file or
    folder to write to; units: how finely its archive tells weights, as coarsely as
    the judge's aims allow, for room is short.
    """

    says: str
    write: Callable[[Trained, Path], Path]
    job: Callable[[Start | None], Job] | None = None
    prepare: Callable[[int | None], None] = lambda stop: None
    extra: Callable[[], Mapping[str, Tensor]] = dict
    folder: bool = False
    units: Units | None = None


def _text_weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)


def _english_text(stop: int | None) -> None:
    if path_of("english").is_file() and not text.KEPT.is_file():
        shipped = world.shipped()["clip"]
        shipped |= {f"text.{k}": w for k, w in read("english").part("text.").items()}
        torch.save(shipped, text.KEPT)
        return
    if not (RUNS / "english").is_dir():  # the tower stays as it is once a UNet stands on it
        text.main(stop)


def _sibling_text(name: str) -> Callable[[int | None], None]:
    def prepare(stop: int | None) -> None:
        if path_of(name).is_file() and not towers.kept(name).is_file():
            torch.save(read(name).part("text."), towers.kept(name))
        elif not (RUNS / name).is_dir():
            towers.train(name, siblings.family(name), siblings.TEXT_STEPS, stop)

    return prepare


def _write_demo(trained: Trained, path: Path) -> Path:
    parts = world.shipped()
    parts["unet"] |= trained.part("net.")
    parts["clip"] |= {f"text.{k}": w for k, w in trained.part("text.").items()}
    return write_file(path, world.checkpoint(parts["unet"], parts["clip"], parts["autoencoder"]))


def _write_lightning(trained: Trained, path: Path) -> Path:
    part = trained.part("net.")
    write_file(path.with_name(f"{path.stem}-lora.safetensors"), derived.lora_file(part))
    parts = world.shipped()
    unet = derived.merged(parts["unet"], part)
    return write_file(path, world.checkpoint(unet, parts["clip"], parts["autoencoder"]))


def _write_merge(look: Trained, path: Path) -> Path:
    parts = world.shipped()
    for name, weight in look.part("net.").items():
        parts["unet"][name] = torch.lerp(parts["unet"][name], weight, MERGED)
    return write_file(path, world.checkpoint(parts["unet"], parts["clip"], parts["autoencoder"]))


def _write_inpainting(trained: Trained, folder: Path) -> Path:
    parts, configs = demo_folder()
    unet: dict[str, Any] = {"_class_name": "UNet2DConditionModel", **UNET_CONFIG}
    configs |= {"unet": {**unet, "in_channels": 9}, "scheduler": SCHEDULER}
    parts["unet"] = trained.part("net.")
    index = index_of(
        "StableDiffusionInpaintPipeline", "unet", "UNet2DConditionModel", "DDIMScheduler",
        "CLIPTextModel",
    )  # fmt: skip
    absent = {"safety_checker": [None, None], "feature_extractor": [None, None]}
    index |= {**absent, "requires_safety_checker": False}
    return write_folder(folder, parts, configs, index)


def _sibling(name: str, says: str, units: Units | None = None) -> Member:
    return Member(
        says,
        lambda trained, path: write_file(path, siblings.tensors_of(name, trained)),
        lambda start: siblings.job(name, start),
        _sibling_text(name),
        lambda: {f"text.{k}": w for k, w in _text_weights(towers.kept(name)).items()},
        units=units,
    )


MERGED = 0.6  # share of the fine-tune in the merge
MEMBERS: dict[str, Member] = {
    "english": Member(
        "the demo's UNet behind a text tower that knows English",
        _write_demo,
        english.job,
        _english_text,
        lambda: {k: w for k, w in _text_weights(text.KEPT).items() if k.startswith("text.")},
        units=Units(added=4.0, text=6.0),
    ),
    "sd2": _sibling(
        "sd2",
        "SD 2.x: v-prediction, wider text read before its last layer",
        Units(added=4.0, net=8.0, text=8.0),
    ),
    "sdxl": _sibling(
        "sdxl",
        "SDXL: two towers, pooled text and size, its pattern of attention",
        Units(added=3.0, net=4.0, text=8.0),
    ),
    "sd3": Member(
        "SD 3: a small MMDiT with rectified flow",
        sd3.write,
        sd3.job,
        folder=True,
        units=Units(net=4.0),
    ),
    "look": Member("a fine-tune of the demo: wavy outlines", _write_demo, derived.look_job),
    "lightning": Member(
        "a LoRA for 4 steps without guidance, and the demo with it",
        _write_lightning,
        derived.lightning_job,
    ),
    "inpainting": Member(
        "an inpainting UNet of 9 channels",
        _write_inpainting,
        derived.inpainting_job,
        folder=True,
    ),
    "merge": Member(f"a merge: {MERGED:.0%} of look, the rest of the demo", _write_merge),
}
SOURCE = {"merge": "look"}
"""A member without an archive of its own -> whose archive it is made of."""
QUEUE = tuple(name for name, member in MEMBERS.items() if member.job)


def member(name: str) -> Member:
    """Return a member; raises ZooError for a name that is none."""
    if name not in MEMBERS:
        raise ZooError(f"{name!r} is no model of the zoo; choose from {', '.join(MEMBERS)}")
    return MEMBERS[name]


def start_of(name: str) -> Start | None:
    """Take averaged weights and step from an archive, when there is one."""
    if not path_of(name).is_file():
        return None
    trained = read(name)
    return trained.part("net."), trained.step


def train_member(name: str, stop: int | None = None) -> None:
    """Train a member, or resume it from its run, or from its archive when the run is gone."""
    one = member(name)
    if one.job is None:
        raise ZooError(f"{name} is made of {SOURCE[name]}: train that")
    if not SHIPPED.is_file():
        world.unpack()
    RUNS.mkdir(parents=True, exist_ok=True)
    one.prepare(stop)
    train(one.job(start_of(name)), stop)


def trained(name: str) -> Trained:
    """Gather a member's averaged weights as they are kept in runs/."""
    path = RUNS / f"{name}.pt"
    if not path.is_file():
        raise ZooError(
            f"{name} has no averaged weights at {path}: python -m bench.zoo train {name}"
        )
    kept = torch.load(path, weights_only=True)
    net = {f"net.{key}": weight for key, weight in kept["weights"].items()}
    if name == "lightning":
        net = {f"net.{k}": w for k, w in derived.lora_part(kept["weights"]).items()}
    return Trained({**net, **member(name).extra()}, kept["step"])


def unpack_member(name: str, out: Path) -> Path:
    """Write a member as an ordinary checkpoint: NAME.safetensors, or the folder NAME, in `out`."""
    one = member(name)
    path = out / name if one.folder else out / f"{name}.safetensors"
    return one.write(read(SOURCE.get(name, name)), path)
