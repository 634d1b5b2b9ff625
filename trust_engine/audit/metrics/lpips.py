"""LPIPS, the learned perceptual distance, with weights that the user supplies."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ModelError

LARGEST = 256  # pixels a side; larger pictures are shrunk, or the features would fill the memory
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Layers by slice as torchvision numbers them; a convolution's stride and padding, "pool" else.
ALEX: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((0, 4, 2),), ((3, 1, 2),), ((6, 1, 1),), ((8, 1, 1),), ((10, 1, 1),),
)  # fmt: skip
VGG = tuple(
    tuple((i, 1, 1) for i in layers)
    for layers in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
)
POOLED = {"alex": (False, True, True, False, False), "vgg": (False, True, True, True, True)}


class Lpips:
    """LPIPS (Zhang et al. 2018, arXiv 1801.03924) on AlexNet or VGG16.

    The file is the state of the package lpips's model as safetensors. Distances come out of the
    features: half the squared distance of two pictures' vectors is their LPIPS.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.device, self.weights = device, _read(path, device)
        self.kind = "alex" if self.weights["net.slice1.0.weight"].shape[-1] == 11 else "vgg"
        self.name = f"lpips-{self.kind}"
        self.slices = ALEX if self.kind == "alex" else VGG
        try:
            self.features(torch.zeros(1, 3, 64, 64))
        except (KeyError, RuntimeError) as error:
            raise ModelError(f"{path}: is not LPIPS on AlexNet or VGG16 ({error})") from error

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Map pictures (b, 3, h, w) in -1..1 to vectors (b, d), whose lengths mean nothing."""
        if max(pixels.shape[-2:]) > LARGEST:
            size = [round(s * LARGEST / max(pixels.shape[-2:])) for s in pixels.shape[-2:]]
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(-1, 1)
        shift, scale = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (SHIFT, SCALE)
        )
        x, taps = (pixels.to(self.device) - shift) / scale, []
        for k, (layers, pool) in enumerate(zip(self.slices, POOLED[self.kind], strict=True)):
            if pool:
                x = F.max_pool2d(x, 3, 2) if self.kind == "alex" else F.max_pool2d(x, 2, 2)
            for number, stride, padding in layers:
                name = f"net.slice{k + 1}.{number}"
                weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
                x = F.conv2d(x, weight, bias, stride, padding).relu()
            unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            share = self.weights[f"lin{k}.model.1.weight"].clamp(min=0)  # (1, c, 1, 1)
            area = x.shape[-2] * x.shape[-1]
            taps.append((unit * (2 * share / area).sqrt()).flatten(1))
        return torch.cat(taps, 1).cpu()


def _read(path: Path, device: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = {name: w.float() for name, w in load_file(str(path), device).items()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors ({error})") from error
    # The package holds the linear layers twice; either name may be the one that was saved.
    for name in list(weights):
        if name.startswith("lins."):
            weights.setdefault(f"lin{name.removeprefix('lins.')}", weights[name])
    if "net.slice1.0.weight" not in weights:
        raise ModelError(
            f"{path}: holds no LPIPS; save the package's model with "
            'safetensors.torch.save_model(lpips.LPIPS(net="alex"), FILE)'
        )
    return weights
