"""What tests of real hosts share: a ComfyUI that runs, and its picture before anything was done."""

from __future__ import annotations

from hosts.comfy_hosted import baseline, server

__all__ = ["baseline", "server"]
