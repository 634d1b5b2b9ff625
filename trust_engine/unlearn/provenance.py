"""Where a run's diff comes from, as its label says; and what a run reads of its model, hashed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import __version__, seeds
from ..models.contract import Conditioning, LentModel, device_of
from ..models.identity import Digest, engine_identity, model_identity
from ..spec import UnlearnSpec
from .results import Results

APPLIED = ("sha256", "strength", "spec", "parts", "how")  # of a diff that a model came with


def provenance_of(
    model: LentModel, spec: UnlearnSpec, base: Mapping[str, Any], results: Results, complete: bool
) -> dict[str, Any]:
    """Write a diff's label; base: `diff.describe_base` of the model before the run."""
    label: dict[str, Any] = {
        "engine": __version__,
        "spec": spec.to_json(),
        **base,
        "neurons": results.neurons,
        "passes": results.passes,
        "backward": results.backward,
    }
    if model.applied:
        label["applied"] = [{n: one[n] for n in APPLIED if n in one} for one in model.applied]
    if not complete:
        label["complete"] = False
    return label


def key_of(spec: UnlearnSpec, identity: str, device: str) -> str:
    """Name a run by its spec, model, the engine's sources and the kind of device.

    Not by threads, libraries' versions and `--memory`, on which the last bits of a diff depend.
    """
    return Digest().text(spec.to_json(), identity, engine_identity(), device).hex()


def identity_of(
    model: LentModel,
    spec: UnlearnSpec,
    texts: Sequence[str],
    cond: Conditioning,
    uncond: Conditioning,
) -> str:
    """Hash all that a run reads of its model and text encoder; cond: its texts, encoded."""
    more = [model.more(cond)] if model.more else []
    if spec.saliency == "clip" and model.score is not None:
        # Decoder and CLIP are the host's own: they count by what they say of some latents.
        x = torch.randn(1, 4, *model.latent_size, generator=seeds.generator(seeds.PROBE))
        score = model.score(x.to(device_of(model.denoiser)), texts[:1])
        more.append(Digest().tensor("score", score.float()).hex())
    return model_identity(model.denoiser, model.latent_size, texts, cond, uncond, " ".join(more))
