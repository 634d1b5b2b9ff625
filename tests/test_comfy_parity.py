"""The demo model in a real ComfyUI is the engine's: same text, same noise, same picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comfy_server import ROOT

pytestmark = pytest.mark.host("COMFYUI_PATH")
PROMPTS = ["a gun on a red background", ""]
TIMES = (1, 300, 700, 990)

# Runs in the host's interpreter: our pack under a module name such as the host gives it.
HOST = """
import importlib, importlib.util, sys, torch
host, root, out = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, host)
import comfy.options
comfy.options.enable_args_parsing()
import comfy.utils
name = "/comfy/custom_nodes/trust-unlearn_x_v1"
spec = importlib.util.spec_from_file_location(name, root + "/__init__.py",
                                              submodule_search_locations=[root])
pack = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
with torch.inference_mode():
    model, clip, vae = pack.NODE_CLASS_MAPPINGS["TrustDemoModel"]().load()
lent = importlib.import_module(name + ".nodes.lending").lend(model, clip)
cond = lent.encoder.encode(["a gun on a red background", ""])
chance = torch.Generator().manual_seed(0)
x = torch.randn(2, 4, 16, 16, generator=chance)
said = {t: lent.host(x, torch.full((2,), t), cond) for t in (1, 300, 700, 990)}
with torch.inference_mode():
    picture = vae.decode(model.model.latent_format.process_out(x)).clone()
tokens = {}
for skip in (None, -2):
    clip.layer_idx = skip
    space = importlib.import_module(name + ".nodes.tokens").tokens_of(clip, torch.device("cpu"))
    ids = space.frame(space.tokens("a gun on a red background"))
    rows = space.table[ids][None].requires_grad_()
    mine = space.encode(rows).context
    theirs = lent.encoder.encode(["a gun on a red background"]).context
    slope = torch.autograd.grad(mine.square().sum(), rows)[0]
    tokens[skip] = mine.detach(), theirs, slope.abs().amax(-1), space.text(ids[1:7].tolist())
torch.save({"tokens": tokens, "x": x, "context": cond.context, "said": said, "picture": picture,
            "base": lent.host.weights.fingerprint()}, out)
"""


def test_demo_model_is_the_engines(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="the engine's own loader needs diffusers")
    from trust_engine.diff import fingerprint
    from trust_engine.model import load_model

    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, "-c", HOST, os.environ["COMFYUI_PATH"], str(ROOT), str(tmp_path / "told")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told, model = torch.load(tmp_path / "told"), load_model("demo", "cpu")
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
    for mine, theirs, slope, text in told["tokens"].values():
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
        assert (slope > 0).all(), "attacks can learn every token"
        assert text == "a gun on a red background"
    assert not torch.allclose(told["tokens"][None][0], told["tokens"][-2][0]), "clip skip counts"
