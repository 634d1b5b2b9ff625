"""Prompts for a real ComfyUI: the demo model, drawn and unlearned, small enough for a test."""

from __future__ import annotations

import dataclasses
from typing import Any

from trust_engine.spec import UnlearnSpec

Prompt = dict[str, dict[str, Any]]
DIRECT = ["1", 0]  # the demo's MODEL
PATCHED = ["11", 0]
SETTINGS = (  # as the node's widgets are ordered
    "saliency", "xi", "schedule", "refresh", "rate", "beta", "lam", "gamma", "tau", "eta",
    "trajectory_steps", "cfg", "passes", "stop_effect", "stop_harm",
    "checkpointing", "resolution", "syntax", "sampling",
)  # fmt: skip


def node(_class: str, **inputs: Any) -> dict[str, Any]:
    """Spell a node out as the API takes it."""
    return {"class_type": _class, "inputs": inputs}


def drawn(model: list, seed: int = 7, text: str = "a gun on a red background") -> Prompt:
    """Draw two pictures with stock nodes: node 7 saves them."""
    return {
        "1": node("TrustDemoModel"),
        "2": node("CLIPTextEncode", text=text, clip=["1", 1]),
        "3": node("CLIPTextEncode", text="", clip=["1", 1]),
        "4": node("EmptyLatentImage", width=128, height=128, batch_size=2),
        "5": node(
            "KSampler", model=model, positive=["2", 0], negative=["3", 0], latent_image=["4", 0],
            seed=seed, steps=4, cfg=5.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="test"),
    }  # fmt: skip


def hurry(**changes: Any) -> dict[str, Any]:
    """Set everything so that a run takes seconds: few passes, small pictures, an early stop."""
    spec = {field.name: field.default for field in dataclasses.fields(UnlearnSpec)}
    quick = {"trajectory_steps": 1, "passes": 16, "stop_effect": 10.0, "stop_harm": 10.0}
    values = {name: 64 if name == "resolution" else spec[name] for name in SETTINGS}
    return node("TrustUnlearnSettings", **{**values, **quick, **changes})


def unlearned(word: str = "gun", seed: int = 0, settings: Any = None, **more: Any) -> Prompt:
    """Unlearn a word: node 11 is Unlearn, 10 its Concept, 12 its Settings, 13 shows the chart."""
    told = {"model": DIRECT, "objective": "csr", "engine": "local", "effort": "quick",
            "budget": 0.03, "robust": False, **more}  # fmt: skip
    return {
        "10": node("TrustConcept", words=word, kind="single"),
        "11": node("TrustUnlearn", clip=["1", 1], concept=["10", 0], seed=seed,
                   settings=["12", 0], **told),
        "12": settings or hurry(),
        "13": node("PreviewImage", images=["11", 2]),
    }  # fmt: skip


def hurried(prompt: Prompt) -> Prompt:
    """Let a whole workflow take seconds, too."""
    prompt = {key: {**told, "inputs": dict(told["inputs"])} for key, told in prompt.items()}
    for told in list(prompt.values()):
        if told["class_type"] in ("TrustUnlearn", "TrustFindNeurons"):
            told["inputs"]["settings"] = ["hurry", 0]
            prompt["hurry"] = hurry()
        for name, value in (("steps", 4), ("images", 1), ("effort", "quick")):
            if name in told["inputs"] and not isinstance(told["inputs"][name], list):
                told["inputs"][name] = value
    return prompt
