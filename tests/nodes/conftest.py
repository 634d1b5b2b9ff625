"""What tests of the nodes share: the pack as it is loaded by a pretended ComfyUI, and a model."""

from __future__ import annotations

from fakes.comfy_pack import host, model, models, part

__all__ = ["host", "model", "models", "part"]
