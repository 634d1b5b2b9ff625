"""Exports in the stock loaders of real hosts. Each host runs in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toys.demo import scrubbed
from toys.small_unet import small_diff
from trust_engine.diff import SparseOffset, WeightDiff
from trust_engine.diff.lora import export_dense, export_lora
from trust_engine.models.unet_keys import projection_of

# A UNet of ComfyUI's own class in the SD 1.x layout, small; its stock LoRA loading from end to
# end. Saves every weight before and after, and what the UNet predicts for one noise.
COMFY = """
import sys, types, torch
host, lora, strength, out = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, host)
from comfy.cli_args import args
args.cpu = True
import comfy.model_patcher, comfy.ops, comfy.sd, comfy.utils
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import save_file

config = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=64, num_res_blocks=[1, 1, 1],
    channel_mult=(1, 2, 3), transformer_depth=[1, 1, 0], transformer_depth_middle=1,
    transformer_depth_output=[1, 1, 1, 1, 0, 0], context_dim=96, num_heads=4,
    use_spatial_transformer=True, dtype=torch.float32,
)

class Host(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.diffusion_model = UNetModel(**config, operations=comfy.ops.disable_weight_init)
        for weight in self.parameters():
            torch.nn.init.normal_(weight, std=0.05)
        self.model_config = types.SimpleNamespace(unet_config=config)

def predicted(unet):
    torch.manual_seed(1)
    with torch.no_grad():
        return unet(torch.randn(1, 4, 16, 16), torch.tensor([500.0]), torch.randn(1, 7, 96))

model = Host()
saved = {"before." + k: w.clone() for k, w in model.diffusion_model.state_dict().items()}
cpu = torch.device("cpu")
patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
if lora != "-":
    loaded = comfy.utils.load_torch_file(lora, safe_load=True)
    patcher, _ = comfy.sd.load_lora_for_models(patcher, None, loaded, float(strength), 0)
    patcher.patch_model()
saved |= {"after." + k: w.clone() for k, w in model.diffusion_model.state_dict().items()}
saved["predicted"] = predicted(model.diffusion_model)
save_file(saved, out)
"""


def comfy(lora: Path | str, strength: float, folder: Path) -> dict[str, torch.Tensor]:
    """Let ComfyUI load a LoRA file: weights before and after, prediction; no warning is printed."""
    from safetensors.torch import load_file

    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, "-c", COMFY, os.environ["COMFYUI_PATH"], str(lora), str(strength)]
    done = subprocess.run([*command, str(folder / "got")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not loaded" not in done.stderr
    return load_file(folder / "got")


def host_diff(folder: Path) -> WeightDiff:
    """Make a diff for the q/k/v weights that ComfyUI's UNet has, of rank 2."""
    chance, offsets = torch.Generator().manual_seed(0), {}
    for name, weight in comfy("-", 0, folder).items():
        key = name.removeprefix("before.")
        if name.startswith("before.") and projection_of(key):
            m, n = weight.shape
            up, down = torch.randn(m, 2, generator=chance), torch.randn(2, n, generator=chance)
            offsets[key] = SparseOffset.of(0.01 * up @ down)
    assert len(offsets) >= 12
    return WeightDiff(offsets, small_diff().provenance)


@pytest.mark.host("COMFYUI_PATH")
@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_comfyui_loads_dense_and_lora(strength: float, tmp_path: Path) -> None:
    diff = host_diff(tmp_path)
    export_dense(diff, tmp_path / "dense.safetensors")
    export_lora(diff, tmp_path / "lora.safetensors", 0.001)
    got = {n: comfy(tmp_path / f"{n}.safetensors", strength, tmp_path) for n in ("dense", "lora")}
    for tensors in got.values():
        for name, before in tensors.items():
            if not name.startswith("before."):
                continue
            key = name.removeprefix("before.")
            after = tensors[f"after.{key}"]
            if key in diff.offsets:
                wanted = before + strength * diff.offsets[key].dense()
                torch.testing.assert_close(after, wanted, rtol=1e-3, atol=1e-4)  # float16 file
                assert not torch.equal(after, before)
            else:
                assert torch.equal(after, before)
    untouched = comfy("-", 0, tmp_path)["predicted"]
    dense, lora = got["dense"]["predicted"], got["lora"]["predicted"]
    assert (dense - untouched).abs().max() > 1e-3
    torch.testing.assert_close(lora, dense, rtol=1e-2, atol=1e-3)


@pytest.mark.host("COMFYUI_PATH")
@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_comfyui_multiplies_factors_as_they_are(strength: float, tmp_path: Path) -> None:
    """In linear layers and convolutions of every kernel, and a bias beside a dense weight."""
    weights = {
        name.removeprefix("before."): weight
        for name, weight in comfy("-", 0, tmp_path).items()
        if name.startswith("before.")
    }
    wide = {key: w for key, w in weights.items() if w.ndim in (2, 4) and w.shape[1] > 4}
    diff = scrubbed(wide)
    kernels = {shape[2:] for shape in diff.shapes.values()}
    assert kernels == {(), (1, 1), (3, 3)}
    bias = SparseOffset.of(torch.linspace(-0.5, 0.5, len(weights["out.2.bias"])))
    diff = WeightDiff({**diff.offsets, "out.2.bias": bias}, small_diff().provenance)
    report = export_lora(diff, tmp_path / "lora.safetensors")
    assert report.dense == 2 and set(report.ranks) == {2}
    got = comfy(tmp_path / "lora.safetensors", strength, tmp_path)
    for key, before in weights.items():
        after = got[f"after.{key}"]
        if key not in diff.offsets:
            assert torch.equal(after, before), key
            continue
        change = strength * diff.offsets[key].dense()
        lost = 2**-11 if key.startswith("out.2.") else 1e-6  # dense in float16, or exact
        torch.testing.assert_close(after, before + change, rtol=1e-5, atol=lost)
        assert (after - before).norm() > 0.9 * change.norm()


@pytest.mark.host("COMFYUI_PATH")
def test_comfyui_shows_what_a_wrong_file_would_do(tmp_path: Path) -> None:
    """The check above can fail: a file under other names changes nothing there."""
    name = "no_such_weight.diff"
    save_file({name: torch.ones(2, 2)}, tmp_path / "wrong.safetensors")
    with pytest.raises(AssertionError, match="not loaded"):
        comfy(tmp_path / "wrong.safetensors", 1.0, tmp_path)
