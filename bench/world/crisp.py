"""How crisp a model draws: its distance to real renders, by object, with no loss that saw them.

python -m bench.world.crisp [--model FILE] [--name demo] [--images 2] [--styles noto ...]

Free: pictures drawn from pure noise, in the judge's features, to the nearest of REALS renders of
that object, style and background; a further render's distance is the floor. Ladder: renders
encoded, noised to a step, denoised with their prompt. All layouts are such as no training drew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from bench.world.scenes import COLOUR_JITTER, PIXELS, paint
from bench.world.training import to_tensor
from trust_engine.demo.judge import Judge, load_judge
from trust_engine.demo.vocabulary import BACKGROUNDS, OBJECTS, STYLES, Scene, caption
from trust_engine.models.load import DEMO, VAE_PREFIX, LoadedModel, load_model
from trust_engine.models.sampler import SamplerSettings, ddim, initial_noise, timesteps

SETTINGS = SamplerSettings(steps=20, cfg=4.0)
RUNGS = (251, 451, 651, 801, 901)
REALS = 12
FIGURES = Path("bench/figures/crisp.json")
SIZES = (88, 104)
CELL = 8  # pixels of a latent's cell: training moves by whole cells, sideways alone


def every(images: int, styles: Sequence[str] = STYLES) -> list[Scene]:
    """List `images` scenes of one object for each object x style, backgrounds in turn."""
    return [
        Scene((name,), BACKGROUNDS[(3 * o + 5 * s + i) % len(BACKGROUNDS)], style)
        for o, name in enumerate(OBJECTS)
        for s, style in enumerate(styles)
        for i in range(images)
    ]


def unseen(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Render a scene off the places that training draws at, (128, 128, 3) uint8."""
    size = int(rng.choice(SIZES))
    x, y = (PIXELS - size) // 2 + rng.integers(-4, 5, 2)
    y += int(y == (PIXELS - size) // 2)  # training draws at this height
    return paint(scene, [(size, int(x), int(y))], _jitter(rng))


def raised(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Render a scene one cell higher than training does, at its codes for the outline."""
    size = int(rng.choice(SIZES))
    corner = (PIXELS - size) // 2
    return paint(
        scene, [(size, corner + 4 - CELL * int(rng.integers(2)), corner - CELL)], _jitter(rng)
    )


def _jitter(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)


class Ruler:
    """Distances between pictures in the judge's features, each by its spread over renders."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        rng = np.random.default_rng(31)
        renders = np.stack([unseen(scene, rng) for scene in every(2)])
        self.spread = self._raw(to_tensor(renders)).std(0).clamp(min=1e-3)

    @torch.no_grad()
    def _raw(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.judge.backbone(part) for part in pixels.split(64)])

    def features(self, pixels: Tensor) -> Tensor:
        """Map pixels (b, 3, 128, 128) to (b, 256); a step of 1 is a typical difference."""
        return self._raw(pixels) / self.spread / self.spread.numel() ** 0.5

    def to_nearest(
        self, pixels: Tensor, scenes: Sequence[Scene], seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return distances (b,) to the nearest render of each scene, and a fresh render's."""
        found, floor = [], []
        features = self.features(pixels)
        for row, (one, scene) in enumerate(zip(features, scenes, strict=True)):
            rng = np.random.default_rng((seed, row))
            renders = np.stack([unseen(scene, rng) for _ in range(REALS + 1)])
            reals = self.features(to_tensor(renders))
            found.append((reals[:-1] - one).norm(dim=1).min())
            floor.append((reals[:-1] - reals[-1]).norm(dim=1).min())
        return torch.stack(found), torch.stack(floor)


def prompts(scenes: Sequence[Scene]) -> list[str]:
    """Write the plain caption of each scene."""
    return [caption(scene.objects, scene.background, scene.style) for scene in scenes]


def free(model: LoadedModel, ruler: Ruler, scenes: Sequence[Scene]) -> dict:
    """Measure pictures from pure noise."""
    seeds = range(7_000_000, 7_000_000 + len(scenes))
    pixels = torch.cat(list(model.generate(prompts(scenes), seeds, SETTINGS)))
    found, floor = ruler.to_nearest(pixels, scenes, 41)
    return {"distance": by_object(found, scenes), "floor": by_object(floor, scenes)}


def ladder(model: LoadedModel, ruler: Ruler, scenes: Sequence[Scene]) -> dict:
    """Measure renders noised to each rung and denoised: pixels' mean error, and features'."""
    rng = np.random.default_rng(51)
    pixels = to_tensor(np.stack([raised(scene, rng) for scene in scenes]))
    real = ruler.features(pixels)
    encoder = load_encoder()
    with torch.no_grad():
        z = torch.cat([encoder(part) for part in pixels.split(32)])
    noise = initial_noise([8_000_000 + i for i in range(len(scenes))], model.latent_size)
    rungs = {"0": z}
    rungs |= {str(t): denoised(model, z, noise, prompts(scenes), t) for t in RUNGS}
    result = {}
    for rung, latents in rungs.items():
        with torch.no_grad():
            drawn = torch.cat([model.decoder(part).clamp(-1, 1) for part in latents.split(32)])
        result[rung] = {
            "pixels": by_object((drawn - pixels).abs().mean((1, 2, 3)), scenes),
            "features": by_object((ruler.features(drawn) - real).norm(dim=1), scenes),
        }
    return result


def denoised(
    model: LoadedModel, z: Tensor, noise: Tensor, texts: Sequence[str], start: int
) -> Tensor:
    """Noise latents (b, 4, h, w) to timestep `start` and sample on from there."""
    skip = timesteps(SETTINGS.steps).index(start)
    t = torch.full((len(z),), start)
    uncond, parts = model.encoder.encode([""]), []
    for first in range(0, len(z), model.batch):
        rows = slice(first, first + model.batch)
        x = model.denoiser.schedule.noised(z[rows], t[rows], noise[rows])
        cond = model.encoder.encode(list(texts[rows]))
        *_, (_, last) = ddim(model.denoiser, x, cond, uncond, SETTINGS, skip)
        parts.append(last.cpu())
    return torch.cat(parts)


def load_encoder() -> nn.Module:
    """Load the encoder that the demo's file holds beside its decoder."""
    from diffusers import AutoencoderTiny

    encoder, prefix = AutoencoderTiny().encoder, VAE_PREFIX + "taesd_encoder."
    with safe_open(str(DEMO), "pt") as file:
        weights = {k: file.get_tensor(k).float() for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
    encoder.load_state_dict({f"layers.{k.removeprefix(prefix)}": v for k, v in weights.items()})
    return encoder.eval().requires_grad_(False)


def blurred(ruler: Ruler, scenes: Sequence[Scene], factor: float) -> float:
    """Return the mean excess of renders that were made smaller by a factor and larger again."""
    rng = np.random.default_rng(1)
    pixels = to_tensor(np.stack([unseen(scene, rng) for scene in scenes]))
    small = F.interpolate(pixels, scale_factor=1 / factor, mode="area")
    shown = F.interpolate(small, size=pixels.shape[-2:], mode="bilinear")
    found, floor = ruler.to_nearest(shown, scenes, 41)
    return float((found - floor).mean())


def by_object(values: Tensor, scenes: Sequence[Scene]) -> dict:
    """Average over all, and for each object."""
    named: dict[str, list[float]] = {}
    for value, scene in zip(values.tolist(), scenes, strict=True):
        named.setdefault(scene.objects[0], []).append(value)
    means = {name: round(sum(all_) / len(all_), 4) for name, all_ in named.items()}
    return {"mean": round(float(values.mean()), 4), "n": len(values), "per_object": means}


def measure(model: LoadedModel, images: int, styles: Sequence[str] = STYLES) -> dict:
    """Measure everything: `images` free pictures an object and style, one on the ladder."""
    ruler = Ruler(load_judge())
    result = {"free": free(model, ruler, every(images, styles))} if images else {}
    return {**result, "ladder": ladder(model, ruler, every(1, styles))}


def summary(result: Mapping) -> str:
    """Format the means, and the excess over the floor of the worst objects."""
    lines = []
    if "free" in result:
        found, floor = (result["free"][kind] for kind in ("distance", "floor"))
        excess = {n: d - floor["per_object"][n] for n, d in found["per_object"].items()}
        worst = sorted(excess, key=lambda name: -excess[name])[:6]
        lines.append(
            f"free: distance {found['mean']:.3f}, floor {floor['mean']:.3f}, "
            f"excess {found['mean'] - floor['mean']:.3f} (n {found['n']})"
        )
        lines.append("worst: " + ", ".join(f"{n} {excess[n]:.3f}" for n in worst))
    for rung, figures in result["ladder"].items():
        pixels, features = figures["pixels"]["mean"], figures["features"]["mean"]
        lines.append(f"from step {rung:>3s}: pixels {pixels:.4f}, features {features:.3f}")
    return "\n".join(lines)


def main() -> None:
    """Measure a model and keep its figures under a name."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--name", help="the key in the JSON file (default: the model)")
    parser.add_argument("--images", type=int, default=2, help="free ones an object x style")
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=STYLES)
    parser.add_argument("--json", type=Path, default=FIGURES)
    parser.add_argument("--blur", type=float, nargs="+", help="measure blurred renders instead")
    args = parser.parse_args()
    if args.blur:
        ruler = Ruler(load_judge())
        for factor in args.blur:
            excess = blurred(ruler, every(1, args.styles), factor)
            print(f"renders blurred by {factor:g}: excess {excess:.3f}")
        return
    result = measure(load_model(args.model), args.images, args.styles)
    print(summary(result))
    kept = json.loads(args.json.read_text()) if args.json.exists() else {}
    kept[args.name or args.model] = result
    args.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
