"""Runs in ComfyUI's interpreter: models whose weights are a few bits and a scale, unlearned.

python comfy_quantised.py COMFYUI ROOT SPEC_JSON OUT_JSON
"""

from __future__ import annotations

import json
from typing import Any

import torch
from comfy_families import FAMILIES, OUT, TOLD, UNET, built, mm, pack, part
from comfy_standins import Clip

import comfy.model_patcher  # isort: skip

KEY = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"


def bits(model: Any) -> dict[str, bytes]:
    """Spell out what a model's weights are made of."""
    state = model.model.diffusion_model.state_dict()
    return {key: w.detach().contiguous().view(torch.uint8).numpy().tobytes()
            if w.ndim else w.detach().reshape(1).view(torch.uint8).numpy().tobytes()
            for key, w in state.items()}  # fmt: skip


@torch.inference_mode()
def quantised(family: str, how: str) -> tuple[Any, Any]:
    """Build a model, and the same as a quantised file of it is loaded."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    plain, state = built(family, torch.bfloat16), {}
    for key, weight in plain.model.diffusion_model.state_dict().items():
        layer, _, name = key.rpartition(".")
        if "transformer_blocks" not in key or name != "weight" or weight.ndim != 2:
            state[key] = weight
            continue
        tensor = QuantizedTensor.from_float(
            weight.bfloat16(), QUANT_ALGOS[how]["comfy_tensor_layout"]
        )
        state.update(tensor.state_dict(key))
        told = json.dumps({"format": how}).encode()
        state[layer + ".comfy_quant"] = torch.tensor(list(told), dtype=torch.uint8)
    kind, more = FAMILIES[family]
    config = kind({**UNET, **more})
    config.quant_config = {"mixed_ops": True}
    config.set_inference_dtype(torch.bfloat16, torch.float32)
    model = config.get_model({}, "", device="cpu")
    model.load_model_weights(state, "")
    places = mm.get_torch_device(), mm.unet_offload_device()
    return plain, comfy.model_patcher.ModelPatcher(model, *places)


@torch.inference_mode()
def main() -> None:
    """Unlearn a quantised model and write down what came of it."""
    told = json.loads(TOLD)
    pack()
    try:
        plain, model = quantised(told["family"], told["how"])
    except (ImportError, KeyError):
        with open(OUT, "w", encoding="utf-8") as out:
            json.dump({"absent": True}, out)
        return
    before = bits(model)
    weights, own = part("nodes.weights").Weights(model), part("nodes.weights").Weights(plain)
    found: dict[str, Any] = {"shapes": weights.shapes == own.shapes, "as": ""}
    try:
        found["as"] = weights.check_storage()
    except part("trust_engine.errors").ModelError as error:
        found["refused"] = str(error)
        with open(OUT, "w", encoding="utf-8") as out:
            json.dump(found, out)
        return
    name = KEY.removeprefix("diffusion_model.")
    found["read"] = float((weights.read(name) - own.read(name)).norm() / own.read(name).norm())
    concept = part("nodes.concept").TrustConcept().describe("gun", "single", preserve="cat, dog")
    settings = part("nodes.settings").Settings({"trajectory_steps": 2, "passes": 32}, 64)
    part("nodes.settings").EFFORTS["tiny"] = 6 / part("nodes.settings").DEFAULTS["steps"]
    shown = part("nodes.unlearn").TrustUnlearn().unlearn(
        model, Clip(), concept[0], "csr", told["engine"], "tiny", 0.03, False, 0,
        settings=settings,
    )  # fmt: skip
    after, diff, _, found["report"] = shown["result"]
    lent = part("nodes.lending").lend
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([700])
    drawn = []
    for one in (model, after, model):
        here = lent(one, Clip(), 64)
        drawn.append(here.host(x, t, here.encoder.encode(["a gun"])))
    wanted = []
    for one in (plain, part("nodes.patching").patched(plain, diff)):
        here = lent(one, Clip(), 64)
        wanted.append(here.host(x, t, here.encoder.encode(["a gun"])))
    one, other = drawn[1] - drawn[0], wanted[1] - wanted[0]
    found["moved"] = float(one.norm() / other.norm())
    found["along"] = float((one * other).sum() / one.norm() / other.norm())
    mm.load_models_gpu([after])
    layer = model.model.diffusion_model.get_submodule(name.removesuffix(".weight"))
    change = diff.offsets[name].dense()
    held = layer.convert_weight(layer.weight).float() - weights.read(name)
    found["held"] = float((held * change).sum() / change.square().sum())
    found["noise"] = float((held - change).norm() / change.norm())
    mm.unload_all_models()
    found["restored"] = torch.equal(drawn[0], drawn[2]) and bits(model) == before
    with open(OUT, "w", encoding="utf-8") as out:
        json.dump(found, out)


main()
