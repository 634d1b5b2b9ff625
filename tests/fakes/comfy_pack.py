"""Fixtures: our node pack, loaded by the pretended ComfyUI under a path with dashes and dots."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fakes.comfy import Clip, Host, Patcher, Vae, fake_model, installed

ROOT = Path(__file__).resolve().parents[2]
NAME = "/comfy/custom_nodes/my-pack_x_2"
ONE_HOST = Host()
Part = Callable[[str], Any]
STEPS = 4  # of a run that shall be over at once


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the pretended host's models."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def part(models: Path) -> Iterator[Part]:
    """Load the pack; `part("nodes.host")` is one of its modules."""
    with installed(ONE_HOST, models):
        spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py")
        assert spec and spec.loader
        pack = sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(pack)

        def find(name: str) -> ModuleType:
            return importlib.import_module(f"{NAME}.{name}" if name else NAME)

        yield find
        for name in [name for name in sys.modules if name.startswith(NAME)]:
            del sys.modules[name]


@pytest.fixture
def host(part: Part) -> Host:
    """Return the pretended host, as new."""
    ONE_HOST.__init__()  # type: ignore[misc]
    return ONE_HOST


@pytest.fixture
def model(host: Host) -> Patcher:
    """Return a MODEL of inference tensors."""
    return fake_model(host)


def frozen(model: Patcher) -> dict[str, bytes]:
    """Take down the shared module's weights, and that nothing hangs on it."""
    unet = model.model.diffusion_model
    for inner in unet.modules():
        assert not inner._forward_hooks and not inner._forward_pre_hooks
        assert "forward" not in vars(inner)
    for weight in unet.parameters():
        assert not weight.requires_grad and weight.grad is None
    return {name: w.float().numpy().tobytes() for name, w in unet.state_dict().items()}


def concept(part: Part, words: str = "gun", **more: Any) -> Any:
    """Make a concept with its node."""
    more.setdefault("preserve", "cat")
    return (
        part("nodes.concept").TrustConcept().describe(words, more.pop("kind", "single"), **more)[0]
    )


def quick(part: Part, **fields: Any) -> Any:
    """Make settings under which a run takes under a second."""
    told = {"trajectory_steps": 2, "passes": 64, "xi": 1.0, **fields}
    return part("nodes.settings").Settings(told, fields.pop("resolution", 64))


def unlearn(part: Part, model: Patcher, whole: bool = False, **changes: Any) -> Any:
    """Run the Unlearn node as the host does: in inference mode. whole: also what it shows."""
    told = {
        "model": model, "clip": Clip(), "concept": concept(part), "objective": "csr",
        "engine": "local", "effort": "tiny", "budget": 0.05, "robust": False, "seed": 0,
        "settings": quick(part), "unique_id": "7", "pictures": 0, **changes,
    }  # fmt: skip
    part("nodes.settings").EFFORTS["tiny"] = STEPS / part("nodes.settings").DEFAULTS["steps"]
    with torch.inference_mode():
        answer = part("nodes.unlearn").TrustUnlearn().unlearn(**told)
    return answer if whole else answer["result"]


def content(diff: Any) -> dict[str, tuple]:
    """Spell a diff's offsets out, for comparison to the bit."""
    return {
        key: (o.indices.numpy().tobytes(), o.values.numpy().tobytes())
        for key, o in diff.offsets.items()
    }


__all__ = ["Vae"]
