"""Neuron zeroing, after ConceptPrune (Chavhan et al. 2024, arXiv 2405.19237): no training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trust_engine.audit.checks.core import follow
from trust_engine.audit.drawing import paint
from trust_engine.models.sampler import SamplerSettings

from .common import TRAIN_SEED, Task, Weights

SECOND = ".ff.net.2"  # the feed-forward network's second layer, whose inputs are its neurons


@dataclass(frozen=True)
class Settings:
    """share: of a row's entries that may be zeroed; early: of the sampler's steps looked at."""

    share: float = 0.02
    early: float = 0.5
    images: int = 16
    sampler_steps: int = 20


def erase(task: Task, settings: Settings) -> Weights:
    """Zero the entries of the feed-forward layers that the concept needs and its anchor does not.

    Wanda's score (Sun et al. 2023): S_ij = |W_ij| |X_j|, X_j being a neuron's activations. An entry
    is skilled when it is among its row's highest under the concept, and higher than under the
    anchor (equations 3 and 4); the union over early steps is set to 0.
    """
    prompts, model = task.prompts, task.model
    modules = {n: m for n, m in model.denoiser.module.named_modules() if n.endswith(SECOND)}
    now, was = (activity(task, p, modules, settings) for p in (prompts.targets, prompts.anchors))
    weights = {}
    for name, module in modules.items():
        weight = module.weight.detach().float()
        gone = torch.zeros_like(weight, dtype=torch.bool)
        for a, b in zip(now[name], was[name], strict=True):
            score, anchor = weight.abs() * a, weight.abs() * b
            count = max(1, round(settings.share * weight.shape[1]))
            least = score.topk(count, dim=1).values[:, -1:]
            gone |= (score >= least) & (score > anchor)
        weights[f"{name}.weight"] = weight.masked_fill(gone, 0)
    return weights


def activity(
    task: Task, prompts: Sequence[str], modules: dict[str, nn.Module], settings: Settings
) -> dict[str, list[Tensor]]:
    """Draw pictures; return each layer's activation norms (neurons,), one tensor an early step."""
    seen: dict[str, list[Tensor]] = defaultdict(list)
    sampler = SamplerSettings(settings.sampler_steps, cfg=1.0)

    def watch(name: str):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, args: tuple[Tensor, ...], _out: Tensor) -> None:
            seen[name].append(args[0].detach().flatten(0, -2).float().norm(dim=0))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    try:
        count = min(settings.images, task.model.batch)  # one batch: a call is a step
        cond = task.encode([prompts[i % len(prompts)] for i in range(count)])
        follow(paint(task.model, cond, range(TRAIN_SEED, TRAIN_SEED + count), sampler), 1)
    finally:
        for handle in handles:
            handle.remove()
    early = max(1, round(settings.early * settings.sampler_steps))
    return {name: norms[:early] for name, norms in seen.items()}
