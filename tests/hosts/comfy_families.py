"""Runs in ComfyUI's interpreter: small models of the host's own classes, lent and unlearned.

python comfy_families.py COMFYUI ROOT SPEC_JSON OUT_JSON
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import sys
from dataclasses import replace
from typing import Any

import torch
from comfy_standins import WIDE, WIDTH, Clip, Lowvram, Vae

HOST, ROOT, TOLD, OUT = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, HOST)
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.model_management as mm  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models as kinds  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
from comfy.ldm.flux.model import FluxParams  # noqa: E402

NAME = "/comfy/custom_nodes/trust-unlearn_x_v1"
UNET: dict[str, Any] = {
    "use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False,
    "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1, "channel_mult": [1, 2], "context_dim": WIDTH,
    "use_temporal_resblock": False, "use_temporal_attention": False,
}  # fmt: skip
HEADS = {"num_heads": -1, "num_head_channels": 32, "use_linear_in_transformer": True}
XL = {**HEADS, "num_classes": "sequential", "adm_in_channels": 2816}
FAMILIES = {
    "sd1": (kinds.SD15, {"num_heads": 4, "num_head_channels": -1, "adm_in_channels": None,
                         "use_linear_in_transformer": False}),
    "sd2-v": (kinds.SD20, {**HEADS, "adm_in_channels": None}),
    "sdxl": (kinds.SDXL, XL),
    "sdxl-v": (kinds.SDXL, XL),
}  # fmt: skip
REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "flux": (kinds.Flux, {
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": WIDTH,
        "context_in_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 4.0, "num_heads": 2,
        "depth": 1, "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 10_000,
        "patch_size": 2, "qkv_bias": True, "guidance_embed": False,
    }),
    "sd3": (kinds.SD3, {
        "in_channels": 16, "patch_size": 2, "depth": 1, "input_size": None, "num_patches": 36,
        "adm_in_channels": WIDTH, "pos_embed_max_size": 6, "pos_embed_scaling_factor": None,
        "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": WIDTH},
        },
    }),
    "inpainting": (kinds.SD15, {**UNET, **FAMILIES["sd1"][1], "in_channels": 9}),
}  # fmt: skip
TELLS = {  # what a file of the family says of its prediction
    "sd2-v": {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.arange(64.0)},
    "sdxl-v": {"v_pred": torch.zeros(1)},
}


def pack() -> Any:
    """Load our pack as the host does."""
    told = {"submodule_search_locations": [ROOT]}
    spec = importlib.util.spec_from_file_location(NAME, ROOT + "/__init__.py", **told)
    assert spec and spec.loader
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def part(name: str) -> Any:
    """Return one of its modules."""
    return importlib.import_module(f"{NAME}.{name}")


@torch.inference_mode()
def built(family: str, dtype: torch.dtype, **special: Any) -> Any:
    """Build a MODEL of random weights."""
    kind, more = FAMILIES[family]
    config = kind({**UNET, **more, **special})
    config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
    model = config.get_model(TELLS.get(family, {}), "", device="cpu")
    chance = torch.Generator().manual_seed(0)
    for name, weight in model.diffusion_model.named_parameters():
        if weight.ndim > 1:
            new = torch.randn(weight.shape, generator=chance) * weight[0].numel() ** -0.5
        else:
            new = torch.full(weight.shape, float(name.endswith("weight")))
        weight.copy_(new.to(weight.dtype))
    places = mm.get_torch_device(), mm.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model, *places)


def refusal(family: str) -> str:
    """Return what is said to somebody who connects a model that is not for us."""
    kind, shape = REFUSED[family]
    if family == "flux" and "txt_ids_dims" in FluxParams.__dataclass_fields__:
        shape = {**shape, "txt_ids_dims": []}  # recent hosts ask for it
    config = kind(shape)
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode():
        model = config.get_model({}, "", device="cpu")
        places = mm.get_torch_device(), mm.unet_offload_device()
        patcher = comfy.model_patcher.ModelPatcher(model, *places)
        try:
            part("nodes.lending").lend(patcher, Clip(), 64)
        except part("trust_engine.errors").ModelError as error:
            return str(error)
    return "it was taken"


@torch.inference_mode()
def towers() -> Any:
    """Build SDXL's CLIP of random weights, with three layers a tower."""
    small = {
        "num_hidden_layers": 3, "hidden_size": WIDTH, "num_attention_heads": 2,
        "intermediate_size": 2 * WIDTH,
    }  # fmt: skip
    wide = {**small, "hidden_size": WIDE, "num_attention_heads": 20}
    options = {"clip_l_model_config": small, "clip_g_model_config": wide, "dtype": torch.float32}
    clip = comfy.sd.CLIP(kinds.SDXL({**UNET, **XL}).clip_target({}), model_options=options)
    chance = torch.Generator().manual_seed(0)
    for weight in clip.cond_stage_model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=chance) * 0.05)
    return clip


def learnable() -> dict[str, Any]:
    """Compare what attacks encode by SDXL's towers with what the host does; then audit."""
    model, clip = built("sdxl", torch.float32, context_dim=WIDTH + WIDE), towers()
    found: dict[str, Any] = {"context": 0.0, "vector": 0.0, "slope": 1.0}
    for skip in (None, -1, -2, -3):
        clip.layer_idx = skip
        encoder = part("nodes.text_encoder").HostEncoder(clip, model, (64, 64), torch.device("cpu"))
        with torch.inference_mode():
            space = encoder.token_space()
        for text in ("a gun on red", "", "gun " * 75):
            wanted = encoder.encode([text])
            ids = space.frame(space.tokens(text))
            rows = space.table[ids][None].requires_grad_()
            mine = space.encode(rows)
            for name in ("context", "vector"):
                apart = (getattr(mine, name) - getattr(wanted, name)).detach().abs().max()
                found[name] = max(found[name], float(apart))
            total = mine.context.square().sum() + mine.vector.square().sum()
            slope = torch.autograd.grad(total, rows)[0][0, :2].abs()
            both = slope[:, :WIDTH].amax(-1), slope[:, WIDTH:].amax(-1)
            found["slope"] = min(found["slope"], *(float(one.min()) for one in both))
    return {**found, "text": space.text(space.tokens("a gun on red")), **audited(model, clip)}


@torch.inference_mode()
def audited(model: Any, clip: Any) -> dict[str, Any]:
    """Audit a change by chance with our node, on small pictures."""
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    clip.layer_idx, after = None, model.clone()
    assert after.add_patches({key: ("diff", (torch.ones(128, WIDTH + WIDE) / 8,))})
    folder_paths.set_output_directory(os.path.dirname(OUT))
    part("nodes.lending").latent_side = lambda *_: 4
    quick = part("trust_engine.audit").pick_level("quick")
    spend = {"judged": 2, "bait": 2, "inversion_steps": 3, "inversion_batch": 2}
    small = replace(quick, shots=1, neutral=1, pairs=1, samplers=(), cfgs=(), strengths=(),
                    budgets=replace(quick.budgets, **spend))  # fmt: skip
    part("nodes.audit").pick_level = lambda _name: small
    concept = part("nodes.concept").TrustConcept().describe("gun", "single")[0]
    told = part("nodes.audit").TrustAudit().audit(
        model, after, clip, Vae(), concept, "quick", "demo", 1, 0, "towers"
    )  # fmt: skip
    figures = told["result"][0]
    return {"attacks": list(figures["attacks"]), "not_covered": str(figures["not_covered"])}


def digest(model: Any) -> str:
    """Hash the shared module's weights."""
    total = hashlib.sha256()
    for weight in model.model.diffusion_model.state_dict().values():
        total.update(weight.detach().float().numpy().tobytes())
    return total.hexdigest()


def parity(model: Any, lent: Any) -> float:
    """Compare what we make of the host's x0 with what its UNet says itself; relative error."""
    cond = lent.encoder.encode(["a gun", "a cat"])
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    worst = 0.0
    for t in (1, 500, 981):
        mine = lent.host(x, torch.full((2,), t), cond)
        with torch.inference_mode():
            mm.load_models_gpu([model])
            more = {} if cond.vector is None else {"y": cond.vector}
            wanted = model.model.diffusion_model(
                x, torch.full((2,), float(t)), context=cond.context, **more
            )
        worst = max(worst, float((mine - wanted).abs().max() / wanted.abs().max()))
    return worst


def main() -> None:
    """Lend and unlearn one model and write down what happened."""
    told = json.loads(TOLD)
    pack()
    if told["family"] in REFUSED:
        with open(OUT, "w", encoding="utf-8") as out:
            json.dump({"refused": refusal(told["family"])}, out)
        return
    if told.get("towers"):
        with open(OUT, "w", encoding="utf-8") as out:
            json.dump(learnable(), out)
        return
    model = built(told["family"], getattr(torch, told["dtype"]))
    if told.get("lora"):
        key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
        with torch.inference_mode():
            model = model.clone()
            assert model.add_patches({key: ("diff", (torch.ones(128, WIDTH) / 8,))})
    if told.get("computes"):  # as on a GPU: on a processor a private UNet would be in float32
        part("nodes.private_unet")._computes_in = lambda _model: getattr(torch, told["computes"])
        part("trust_engine.unlearn.scrubbing.picture_stage").LARGE = 0  # so blocks compute twice
    before, fully, short = digest(model), mm.load_models_gpu, Lowvram()
    if told.get("lowvram"):
        mm.load_models_gpu = short.load
    lent = part("nodes.lending").lend(model, Clip(), 64)
    found = {"prediction": lent.host.schedule.prediction, "parity": parity(model, lent)}
    concept = part("nodes.concept").TrustConcept().describe("gun", "single", preserve="cat, dog")
    fields = {"trajectory_steps": 2, "passes": 32}
    settings = part("nodes.settings").Settings(fields, 64)
    part("nodes.settings").EFFORTS["tiny"] = 6 / part("nodes.settings").DEFAULTS["steps"]
    asked = {
        "objective": "csr", "engine": told["engine"], "effort": "tiny", "budget": 0.03,
        "robust": told.get("robust", False), "seed": 0, "settings": settings,
    }  # fmt: skip
    node = part("nodes.unlearn").TrustUnlearn()
    with torch.inference_mode():  # as the host runs nodes
        shown = node.unlearn(model, Clip(), concept[0], **asked)
        after, diff, _, report = shown["result"]
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        drawn = []
        for one in (model, after, model, after):
            if len(drawn) == 3:
                short.unload()
                mm.load_models_gpu = fully
            cond = lent.encoder.encode(["a gun"])
            mine = part("nodes.lending").lend(one, Clip(), 64)
            drawn.append(mine.host(x, torch.tensor([700]), cond))
        mm.unload_all_models()
    found["changed"] = diff.changed
    found["moved"] = float((drawn[0] - drawn[1]).abs().max())
    found["apart"], found["patches"] = float((drawn[1] - drawn[3]).abs().max()), short.patches
    found["restored"] = torch.equal(drawn[0], drawn[2]) and digest(model) == before
    found["base"] = diff.provenance["base"] == lent.host.weights.fingerprint()
    found["report"] = report
    with open(OUT, "w", encoding="utf-8") as out:
        json.dump(found, out)


if __name__ == "__main__":
    main()
