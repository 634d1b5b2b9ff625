"""A run's state: what a later run goes on from, in one safetensors file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..diff import SparseOffset
from ..errors import DivergenceError, SpecError
from ..io.files import open_safetensors, write_atomically
from .trainer import Standing
from .trajectory import Recording

if TYPE_CHECKING:
    from .run import Unlearning

FORMAT = "trust_run"
VERSION = 1


@dataclass(frozen=True)
class RunState:
    """The recording, the layers that are done, and the one at work; and what all that cost."""

    spec: str
    base: str
    passes: int
    backward: int
    recording: Recording
    offsets: Mapping[str, SparseOffset]
    neurons: Mapping[str, dict[str, Any]]
    final: Mapping[str, Standing]
    piece: str
    forgetting: dict[str, Tensor]


def save_state(state: RunState, path: Path) -> None:
    """Write a state, all or nothing; raises OutputError."""
    from safetensors.torch import save

    recording = state.recording
    tensors = {"latents": recording.latents, "timesteps": recording.timesteps}
    tensors |= {f"told.{k}": v for k, v in recording.told.items()}
    tensors |= {f"free.{k}": v for k, v in recording.free.items()}
    tensors |= {f"run.{k}": v for k, v in state.forgetting.items()}
    for key, offset in state.offsets.items():
        tensors[f"indices.{key}"], tensors[f"values.{key}"] = offset.indices, offset.values
    label = {
        "version": VERSION,
        "spec": state.spec,
        "base": state.base,
        "recorded": recording.passes,
        "passes": state.passes,
        "backward": state.backward,
        "shapes": {key: list(offset.shape) for key, offset in state.offsets.items()},
        "neurons": dict(state.neurons),
        "final": {name: dataclasses.astuple(here) for name, here in state.final.items()},
        "piece": state.piece,
    }
    # Copied: safetensors refuses tensors that share memory, as thinned recordings may.
    whole = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
    write_atomically(path, save(whole, {FORMAT: json.dumps(label)}))


def load_state(path: Path) -> RunState:
    """Read a state; raises SpecError for anything else."""
    with open_safetensors(path, SpecError) as file:
        text = (file.metadata() or {}).get(FORMAT)
        if text is None:
            raise SpecError(f"{path}: not the state of a run (no {FORMAT!r} in its metadata)")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    try:
        label = json.loads(text)
        if label["version"] != VERSION:
            raise SpecError(f"{path}: state of version {label['version']}, this reads {VERSION}")
        return _build(label, tensors)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"{path}: the state is damaged ({error}); start without it") from error


def _build(label: dict[str, Any], tensors: dict[str, Tensor]) -> RunState:
    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    recording = Recording(
        under("told."), under("free."), tensors["latents"], tensors["timesteps"], label["recorded"]
    )
    offsets = {
        key: SparseOffset(tuple(shape), tensors[f"indices.{key}"], tensors[f"values.{key}"])
        for key, shape in label["shapes"].items()
    }
    final = {name: Standing(*figures) for name, figures in label["final"].items()}
    return RunState(
        label["spec"],
        label["base"],
        label["passes"],
        label["backward"],
        recording,
        offsets,
        label["neurons"],
        final,
        label["piece"],
        under("run."),
    )


def wanted(path: Path | None) -> RunState | None:
    """Read the state at a path if there is one."""
    return load_state(path) if path is not None and path.exists() else None


@contextlib.contextmanager
def keeping(run: Unlearning, path: Path | None) -> Iterator[None]:
    """Keep a run's state at a path when it is stopped or fails; take it away when it is done."""
    try:
        yield
    except DivergenceError:
        raise  # from the same state it would diverge again
    except BaseException:
        if path is not None and run.resumable:
            save_state(run.state, path)
        raise
    if path is not None:
        path.unlink(missing_ok=True)
