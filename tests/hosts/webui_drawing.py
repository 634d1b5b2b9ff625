"""What the tests of real web UIs do by the API: unlearn within seconds, draw, compare."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from PIL import Image

from hosts.webui_server import Server
from toys.demo import scrubbed_demo
from trust_engine.diff import WeightDiff, load_diff, save_diff

SHORT = {"steps": 3, "trajectory_steps": 2, "passes": 16, "rate": 1.0, "budget": 0.3}
ROBUST = {**SHORT, "robust": True, "passes": 16}


def made(server: Server, name: str, **changes: Any) -> str:
    """Unlearn something once for each server; returns the diff's name."""
    if not (server.diffs / f"{name}.safetensors").exists():
        concept = {"words": ["gun"], "preserve": ["a cat", "a dog"]}
        body = {"concepts": [concept], "spec": SHORT, "resolution": 64, "pictures": 0,
                "name": name, **changes}  # fmt: skip
        told = server.finish(server.ask("/trust/v1/unlearn", body))
        assert told["state"] == "done", told["message"]
        assert told["result"]["diff"] == f"{name}.safetensors"
    return f"{name}.safetensors"


def scrubbed(server: Server) -> str:
    """Give a server a diff of low rank in every layer that works on the picture."""
    if not (server.diffs / "scrubbed.safetensors").exists():
        save_diff(scrubbed_demo(), server.diffs / "scrubbed.safetensors")
    return "scrubbed.safetensors"


def read(server: Server, name: str) -> WeightDiff:
    """Read a diff that lies in the server's folder."""
    return load_diff(server.diffs / name)


def drawn(server: Server, *args: Any, **more: Any) -> tuple[list[bytes], list[str]]:
    """Draw by txt2img, or by img2img when there are pictures to begin with; args: the accordion's.

    Returns pixels and infotexts.
    """
    body = {"prompt": "a gun on a table", "seed": 7, "steps": 2, "width": 64, "height": 64,
            "cfg_scale": 5, "sampler_name": "Euler", **more}  # fmt: skip
    if args:
        body["alwayson_scripts"] = {"TRUST": {"args": list(args)}}
    way = "img2img" if "init_images" in more else "txt2img"
    told = server.ask(f"/sdapi/v1/{way}", body)
    return [pixels(picture) for picture in told["images"]], json.loads(told["info"])["infotexts"]


def first(server: Server, *args: Any, **more: Any) -> tuple[bytes, str]:
    """Draw one picture; returns its pixels and infotext."""
    (picture,), (text,) = drawn(server, *args, **more)
    return picture, text


def pixels(picture: str) -> bytes:
    """Decode a picture to its pixels."""
    return Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").tobytes()


def apart(a: bytes, b: bytes) -> float:
    """Return the mean distance of two pictures' pixels, 0 to 255."""
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a)


def give_lora(server: Server) -> Any:
    """Return the folder of the stock Lora; `refresh-loras` makes new files known."""
    folder = server.data / "models" / "Lora"
    folder.mkdir(exist_ok=True)
    return folder
