"""What attacks that are given pictures teach a model of things that it never saw.

    python -m bench.never_seen [--attacks relearning ...] [--seeds 3]

Cactus and violin: Emoji World's judge knows them, its model was trained without them. The attacker
gets renders of them and the budget of the benchmark. What that gives, no unlearning can go below: a
model from which every trace is gone is at best one that never learned the thing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor

from bench.rivals import FULL
from bench.world.scenes import draw
from bench.world.train_unet import LATTICE
from bench.world.training import to_tensor
from trust_engine.audit.attacks.base import attack_check
from trust_engine.audit.attacks.catalogue import make_attack
from trust_engine.audit.checks.core import follow
from trust_engine.audit.context import AuditContext, ReferenceImages
from trust_engine.audit.judges.base import DemoJudge
from trust_engine.audit.metrics.intervals import Rate
from trust_engine.audit.probe_prompts import concept_shots
from trust_engine.audit.topic import demo_topic
from trust_engine.demo.judge import load_judge
from trust_engine.demo.vocabulary import UNSEEN, Scene
from trust_engine.models.checkpoint import VAE_PREFIX
from trust_engine.models.load import DEMO, LoadedModel, load_model
from trust_engine.models.sampler import SamplerSettings

ATTACKS = ("relearning", "relearning_lora", "textual_inversion_1", "textual_inversion_3")


@cache
def load_encoder() -> torch.nn.Module:
    """Load the demo's picture encoder (TAESD's architecture), which drawing has no use for."""
    prefix = f"{VAE_PREFIX}taesd_encoder."
    named = {k.removeprefix(prefix): w for k, w in load_file(str(DEMO)).items()}
    encoder = AutoencoderTiny().encoder
    encoder.load_state_dict({f"layers.{k}": named[k] for k in named if k[0].isdecimal()})
    return encoder.eval()


@torch.no_grad()
def rendered(scenes: Sequence[Scene], seed: int) -> Tensor:
    """Draw scenes from the emoji themselves and encode them, (n, 4, 16, 16)."""
    rng = np.random.default_rng(seed)
    x = to_tensor(np.stack([draw(scene, rng, LATTICE) for scene in scenes]))
    return load_encoder()(x)


def bench(model: LoadedModel, word: str, attack: str, seed: int) -> Rate:
    """Attack the untouched model with renders of a thing; returns how often the judge sees it."""
    models = {"untouched": model, "edited": model}
    context = AuditContext(
        models, DemoJudge(load_judge()), demo_topic(word), SamplerSettings(), seed
    )
    for count in {FULL.budgets.bait, FULL.budgets.relearn_images, FULL.budgets.judged}:
        shots = concept_shots(context.topic, "bait", count, seed)
        latents = rendered([shot.scene for shot in shots], seed)
        context._stock["bait", count] = ReferenceImages(latents, shots, count)
    made = make_attack(attack, FULL.budgets)
    cell = attack_check(context, made, FULL.budgets.judged, False)
    asr = follow(cell.run(context), cell.passes).figures["asr"]
    return Rate(round(asr["value"] * asr["n"]), asr["n"])


def main() -> None:
    """Print a row a thing and attack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=ATTACKS)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    model = load_model("demo", "cpu")
    print("| thing | attack | seen |\n|---|---|---|")
    for attack in args.attacks:
        for word in UNSEEN:
            found = [bench(model, word, attack, seed) for seed in range(args.seeds)]
            rate = Rate(sum(r.hits for r in found), sum(r.n for r in found)).to_dict()
            shown = f"{rate['value']:.2f} ({rate['low']:.2f}-{rate['high']:.2f}), n {rate['n']}"
            print(f"| {word} | {attack} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
