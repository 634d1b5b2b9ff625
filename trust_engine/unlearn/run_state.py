"""A run's state: what a later run goes on from, in one safetensors file with a checksum."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..diff import LowRankOffset, Offset, SparseOffset
from ..diff.weight_diff import check_offset
from ..errors import DiffError, SpecError
from ..io.files import open_regular
from ..io.safetensors import (
    NAMES,
    planned,
    read_header,
    read_tensor,
    tensor_bytes,
    write_tensors,
)
from .trainer import Metrics
from .trajectory import Part, Recording
from .word_knowledge import Knowledge

FORMAT = "trust_run"
VERSION = 4
LONGEST_HEADER = 1 << 28
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class RunState:
    """What is recorded, the layers that are done, and the one at work; and what all that cost.

    base: `identity.model_identity` of what it was made with; finished: all layers are done, and
    nothing but the diff is left to make, for which no recording is needed; curves: effect and harm
    after each step; knowledge: what the model was found to know of the words; scrubbed: what is
    left, harm and UNet passes, forward and back, of robust mode's first stage, once it is over:
    until then `recording` holds its pictures.
    """

    spec: str
    base: str
    passes: int
    backward: int
    recording: Recording
    offsets: Mapping[str, Offset]
    neurons: Mapping[str, dict[str, Any]]
    final: Mapping[str, Metrics]
    piece: str
    forgetting: dict[str, Tensor]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    finished: bool = False
    engine: str = __version__
    knowledge: Knowledge | None = None
    scrubbed: tuple[float, float, int, int] | None = None

    @property
    def reached(self) -> tuple[int, int, int]:
        """Tell how far it has come, for comparison: layers, steps of the next one, passes.

        A stage that is over counts as a layer.
        """
        own = self.forgetting.items() if self.piece else ()
        done = sum(int(count) for name, count in own if name.rpartition(".")[2] == "done")
        return len(self.final) + (self.scrubbed is not None), done, self.recording.passes

    @property
    def size(self) -> int:
        """Estimate the bytes of its file."""
        recording = self.recording
        tensors = [recording.latents, *recording.cond.values(), *recording.uncond.values()]
        tensors += self.forgetting.values()
        for offset in self.offsets.values():
            tensors += _held(offset).values()
        for part in recording.parts:
            tensors += [part.x, *part.latents]
            for seen in (*part.cond.values(), *part.uncond.values()):
                tensors += seen
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + (1 << 16)

    def without_recording(self) -> RunState:
        """Keep what a finished run is made from."""
        empty = Recording(passes=self.recording.passes)
        return dataclasses.replace(self, recording=empty, piece="", forgetting={}, finished=True)


def save_state(state: RunState, path: Path, digests: dict[int, Any] | None = None) -> None:
    """Write a state, all or nothing; raises OutputError.

    digests: remembers the hashes of recorded tensors, which stay the same from one save to the
    next; a dict of the caller's.
    """
    tensors = _tensors_of(state)
    # Copied only if they are elsewhere: one tensor at a time is on its way to the file.
    plan = planned({key: (tensor.dtype, tensor.shape) for key, tensor in tensors.items()})
    label = _label_of(state)
    known = digests if state.recording.over else None
    steady = ("told.", "free.", "latents", "timesteps")
    label["sha256"] = _sha256(
        label,
        {k: _digest(t, known if k.startswith(steady) else None) for k, t in tensors.items()},
    )
    text = {FORMAT: json.dumps(label)}
    write_tensors(path, plan, lambda key: (tensor_bytes(tensors[key]),), text)


def _tensors_of(state: RunState) -> dict[str, Tensor]:
    recording = state.recording
    tensors = {"latents": recording.latents, "timesteps": recording.timesteps}
    tensors |= {f"told.{k}": v for k, v in recording.cond.items()}
    tensors |= {f"free.{k}": v for k, v in recording.uncond.items()}
    if recording.parts:
        tensors = {}
    for i, part in enumerate(recording.parts):
        tensors |= {f"part.{i}.{k}": v for k, v in part.tensors().items()}
    tensors |= {f"run.{k}": v for k, v in state.forgetting.items()}
    for key, offset in state.offsets.items():
        tensors |= {f"{part}.{key}": tensor for part, tensor in _held(offset).items()}
    for name, curve in state.curves.items():
        tensors[f"curve.{name}"] = torch.tensor(curve, dtype=torch.float64).view(-1, 2)
    return tensors


def _held(offset: Offset) -> dict[str, Tensor]:
    """List the tensors of an offset: entries, or factors, or both."""
    held: dict[str, Tensor] = {}
    if offset.sparse is not None:
        held |= {"indices": offset.sparse.indices, "values": offset.sparse.values}
    if offset.factors is not None:
        held |= dict(zip(("up", "down"), offset.factors, strict=True))
    return held


def _label_of(state: RunState) -> dict[str, Any]:
    return {
        "version": VERSION,
        "engine": state.engine,
        "spec": state.spec,
        "base": state.base,
        "recorded": state.recording.passes,
        "parts": [part.done for part in state.recording.parts],
        "passes": state.passes,
        "backward": state.backward,
        "shapes": {key: list(offset.shape) for key, offset in state.offsets.items()},
        "neurons": dict(state.neurons),
        "final": {name: dataclasses.astuple(here) for name, here in state.final.items()},
        "piece": state.piece,
        "finished": state.finished,
        "scrubbed": state.scrubbed,
        "knowledge": state.knowledge.to_dict() if state.knowledge else None,
    }


def _digest(tensor: Tensor, known: dict[int, Any] | None) -> bytes:
    """Hash a tensor; one that was hashed before, and is still the same object, is not again."""
    if known is not None and id(tensor) in known and known[id(tensor)][0] is tensor:
        found: bytes = known[id(tensor)][1]
        return found
    digest = hashlib.sha256(f"{NAMES[tensor.dtype]}{tuple(tensor.shape)}".encode())
    digest.update(tensor_bytes(tensor))
    if known is not None:
        known[id(tensor)] = (tensor, digest.digest())
    return digest.digest()


def _sha256(label: Mapping[str, Any], digests: Mapping[str, bytes]) -> str:
    rest = {key: value for key, value in label.items() if key != "sha256"}
    whole = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(digests):
        whole.update(f"{name}:".encode() + digests[name])
    return whole.hexdigest()


@torch.inference_mode(False)  # which hosts may be in: its tensors could never be trained further
def load_state(path: Path) -> RunState:
    """Read a state and check it; raises SpecError for anything else, or one that is damaged."""
    with open_regular(path, SpecError) as file:
        header = read_header(file, str(path), SpecError, LONGEST_HEADER, known=True)
        if FORMAT not in header.metadata:
            raise SpecError(f"{path}: not the state of a run (no {FORMAT!r} in its metadata)")
        tensors = {key: read_tensor(file, entry) for key, entry in header.entries.items()}
    try:
        label = json.loads(header.metadata[FORMAT])
        version = label.get("version")
        if type(version) is int and 0 < version < VERSION:
            raise SpecError(
                f"{path}: a state of version {version}, which does not say of all it depends on "
                f"(this reads {VERSION}); start without it"
            )
        if version != VERSION:
            raise ValueError(f"its version is {str(version)[:20]!r}, this reads {VERSION}")
        if label.get("sha256") != _sha256(label, {k: _digest(t, None) for k, t in tensors.items()}):
            raise ValueError("its content does not match its checksum")
        return _build(label, tensors)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        why = " ".join(str(error).split())[:120]
        raise SpecError(f"{path}: the state is damaged ({why}); start without it") from error
    except (RecursionError, DiffError) as error:
        raise SpecError(f"{path}: the state is damaged; start without it") from error


def _build(label: dict[str, Any], tensors: dict[str, Tensor]) -> RunState:
    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    for name in ("spec", "base", "piece", "engine"):
        _check(type(label[name]) is str, f"its {name} is not a text")
    for name in ("passes", "backward", "recorded"):
        _check(type(label[name]) is int and label[name] >= 0, f"its {name} is no count")
    _check(type(label["finished"]) is bool, "it does not say whether it is finished")
    offsets = {key: _offset(key, tuple(shape), tensors) for key, shape in label["shapes"].items()}
    final = {name: Metrics(*map(_finite, figures)) for name, figures in label["final"].items()}
    _check(all(isinstance(n, dict) for n in label["neurons"].values()), "its neurons are damaged")
    forgetting, curves = under("run."), under("curve.")
    _check(bool(label["piece"]) == bool(forgetting), "the layer at work is missing")
    return RunState(
        label["spec"],
        label["base"],
        label["passes"],
        label["backward"],
        _recording(label, under, tensors),
        offsets,
        label["neurons"],
        final,
        label["piece"],
        forgetting,
        {name: [(float(e), float(h)) for e, h in curve.tolist()] for name, curve in curves.items()},
        label["finished"],
        label["engine"],
        Knowledge.from_dict(label["knowledge"]) if label.get("knowledge") else None,
        _scrubbed(label["scrubbed"]),
    )


def _scrubbed(told: Any) -> tuple[float, float, int, int] | None:
    if told is None:
        return None
    left, harm, passes, back = told
    for count in (passes, back):
        _check(type(count) is int and count >= 0, "its scrubbing's passes are no count")
    return _finite(left), _finite(harm), passes, back


def _offset(key: str, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Offset:
    offset: Offset | None = None
    if f"up.{key}" not in tensors or f"indices.{key}" in tensors:
        offset = SparseOffset(shape, tensors[f"indices.{key}"], tensors[f"values.{key}"])
    if f"up.{key}" in tensors:
        sparse = None if offset is None else offset.sparse
        offset = LowRankOffset(tensors[f"up.{key}"], tensors[f"down.{key}"], sparse)
    assert offset is not None
    check_offset(key, offset, "the state")
    _check(offset.shape == shape, f"{key} is of another shape")
    return offset


def _recording(
    label: Mapping[str, Any],
    under: Callable[[str], dict[str, Tensor]],
    tensors: Mapping[str, Tensor],
) -> Recording:
    if label["parts"]:
        parts = [Part.of(under(f"part.{i}."), int(done)) for i, done in enumerate(label["parts"])]
        return Recording(passes=label["recorded"], parts=parts)
    if label["finished"]:
        return Recording(passes=label["recorded"])
    recording = Recording(
        under("told."), under("free."), tensors["latents"], tensors["timesteps"], label["recorded"]
    )
    rows = len(recording.latents)
    _check(recording.latents.ndim == 5 and rows > 0, "its latents are damaged")
    _check(recording.over, "its recording is not over")
    _check(recording.cond.keys() == recording.uncond.keys(), "a layer's recording is missing")
    for name, cond in recording.cond.items():
        sound = cond.ndim == 3 and len(cond) == rows and cond.dtype == torch.float16
        _check(sound, f"the recording of {name} is damaged")
        uncond = recording.uncond[name]
        _check(uncond.dtype == cond.dtype and uncond.shape == cond.shape, f"{name} is damaged")
    return recording


def _check(sound: bool, what: str) -> None:
    if not sound:
        raise ValueError(what)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a layer's figures are no numbers")
    return value


def wanted(path: Path | None) -> RunState | None:
    """Read the state at a path if there is one."""
    return load_state(path) if path is not None and path.exists() else None
