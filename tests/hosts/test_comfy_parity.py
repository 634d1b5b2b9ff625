"""The demo model in a real ComfyUI is the engine's: same text, same noise, same picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hosts.comfy_server import ROOT

pytestmark = pytest.mark.host("COMFYUI_PATH")
PROMPTS = ["a gun on a red background", ""]
TIMES = (1, 300, 700, 990)

# Run in the host's interpreter: our pack under a module name such as the host gives it.
LENT = """
import importlib, importlib.util, sys, torch
host, root, out = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, host)
import comfy.options
comfy.options.enable_args_parsing()
import comfy.utils, folder_paths
folder_paths.add_model_folder_path("embeddings", out + ".embeddings")
name = "/comfy/custom_nodes/trust-unlearn_x_v1"
spec = importlib.util.spec_from_file_location(name, root + "/__init__.py",
                                              submodule_search_locations=[root])
pack = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
with torch.inference_mode():
    model, clip, vae = pack.NODE_CLASS_MAPPINGS["TrustDemoModel"]().load()
lent = importlib.import_module(name + ".nodes.lending").lend(model, clip)
"""
UNET = """
cond = lent.encoder.encode(["a gun on a red background", ""])
chance = torch.Generator().manual_seed(0)
x = torch.randn(2, 4, 16, 16, generator=chance)
said = {t: lent.host(x, torch.full((2,), t), cond) for t in (1, 300, 700, 990)}
with torch.inference_mode():
    picture = vae.decode(model.model.latent_format.process_out(x)).clone()
torch.save({"x": x, "context": cond.context, "said": said, "picture": picture,
            "base": lent.host.weights.fingerprint()}, out)
"""
TEXT = """
import nodes, os
from safetensors.torch import save_file
os.mkdir(out + ".embeddings")
save_file({"emb_params": torch.ones(2, 96) / 50}, out + ".embeddings/mine.safetensors")
texts = ["a gun on red", "a (gun:1.5) on red", "a embedding:mine on red"]
tokens_of = importlib.import_module(name + ".nodes.token_space").tokens_of
told = {}
for skip in (None, -2):
    clip.layer_idx = skip
    mine = [lent.encoder.with_syntax().encode([text]).context for text in texts]
    spelled = lent.encoder.encode([texts[1]]).context
    with torch.inference_mode():
        theirs = [nodes.CLIPTextEncode().encode(clip, text)[0][0][0].clone() for text in texts]
        escaped = nodes.CLIPTextEncode().encode(clip, "a \\(gun:1.5\\) on red")[0][0][0].clone()
    space = tokens_of(clip, torch.device("cpu"))
    ids = space.frame(space.tokens(texts[0]))
    rows = space.table[ids][None].requires_grad_()
    free = space.encode(rows).context
    slope = torch.autograd.grad(free.square().sum(), rows)[0].abs().amax(-1)
    told[skip] = mine, theirs, free.detach(), slope, space.text(ids[1:5].tolist()), spelled, escaped
torch.save(told, out)
"""


def run(script: str, out: Path) -> dict:
    """Run a script on the demo model that the host has lent us."""
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, "-c", LENT + script, os.environ["COMFYUI_PATH"], str(ROOT), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(out)


def test_demo_model_is_the_engines(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="the engine's own loader needs diffusers")
    from trust_engine.diff import fingerprint
    from trust_engine.models.load import load_model

    told, model = run(UNET, tmp_path / "told"), load_model("demo", "cpu")
    cond = model.encoder.encode(PROMPTS)
    torch.testing.assert_close(told["context"], cond.context, rtol=1e-4, atol=1e-4)
    assert told["base"] == fingerprint(model.denoiser)
    with torch.no_grad():
        for t in TIMES:
            wanted = model.denoiser(told["x"], torch.full((2,), t), cond)
            torch.testing.assert_close(told["said"][t], wanted, rtol=1e-3, atol=1e-3)
        picture = (model.decoder(told["x"]).clamp(-1, 1) + 1) / 2
    # The file's scale of the latents is a 16-bit number.
    torch.testing.assert_close(told["picture"].movedim(-1, 1), picture, rtol=0, atol=0.01)


def test_text_is_the_hosts_own(tmp_path: Path) -> None:
    """As it is spelled, or by the host's syntax; clip skip counts; attacks can learn tokens."""
    told = run(TEXT, tmp_path / "told")
    for mine, theirs, free, slope, text, spelled, escaped in told.values():
        assert torch.equal(spelled, escaped)
        for one, other in zip(mine, theirs, strict=True):
            assert torch.equal(one, other)
        assert not torch.equal(mine[0], mine[1]) and mine[0].shape == mine[2].shape
        assert not torch.equal(mine[0], mine[2])
        torch.testing.assert_close(free, theirs[0], rtol=1e-4, atol=1e-4)
        assert (slope > 0).all() and text == "a gun on red"
    assert not torch.allclose(told[None][0][0], told[-2][0][0])
