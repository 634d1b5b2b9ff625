"""Render the five emoji sets into one sprite sheet (`make sprites`); read it back."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from trust_engine.demo.vocabulary import JUDGED, STYLES

SHEET = Path(__file__).with_name("sprites.png")
SIZE = 96  # pixels of one sprite; scenes never draw one larger
PACKAGES = {
    "noto": "@iconify-json/noto",
    "fluent": "@iconify-json/fluent-emoji-flat",
    "twemoji": "@iconify-json/twemoji",
    "openmoji": "@iconify-json/openmoji",
    "emojione": "@iconify-json/emojione",
}
ICONS = {
    "cat": "cat-face",
    "dog": "dog-face",
    "horse": "horse-face",
    "car": "automobile",
    "apple": "red-apple",
    "tree": "deciduous-tree",
    "clown": "clown-face",
    "knife": "kitchen-knife",
    "gun": "water-pistol|pistol",
    "beer": "beer-mug",
    "wine": "wine-glass",
    "clock": "alarm-clock",
    "snowman": "snowman-without-snow|snowman",
}
"""Object -> icon names to try, where they differ from the object's own word."""


def load_sprites() -> np.ndarray:
    """Read the sheet as (style, object, 96, 96, rgba) uint8, in the vocabulary's order."""
    sheet = np.asarray(Image.open(SHEET).convert("RGBA"))
    rows = sheet.reshape(len(STYLES), SIZE, len(JUDGED), SIZE, 4)
    return rows.transpose(0, 2, 1, 3, 4)


def render_sheet(packages: Path) -> Image.Image:
    """Draw every object of every style from the unpacked npm tarballs in `packages`."""
    sheet = Image.new("RGBA", (SIZE * len(JUDGED), SIZE * len(STYLES)))
    for row, style in enumerate(STYLES):
        icons = _icons(packages, PACKAGES[style])
        for column, name in enumerate(JUDGED):
            sheet.paste(_render(icons, ICONS.get(name, name)), (column * SIZE, row * SIZE))
    return sheet


def _icons(packages: Path, package: str) -> dict:
    subprocess.run(["npm", "pack", "--silent", package], cwd=packages, check=True)
    stem = package.strip("@").replace("/", "-")
    (tarball,) = packages.glob(f"{stem}-[0-9]*.tgz")
    with tarfile.open(tarball) as archive:
        member = archive.extractfile("package/icons.json")
        assert member is not None
        return json.load(member)


def _render(icons: dict, names: str) -> Image.Image:
    import resvg_py

    name = next(n for n in names.split("|") if n in icons["icons"])
    icon = icons["icons"][name]
    box = (icon.get("left", 0), icon.get("top", 0))
    extent = (icon.get("width", icons["width"]), icon.get("height", icons["height"]))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIZE}" height="{SIZE}" '
        f'viewBox="{box[0]} {box[1]} {extent[0]} {extent[1]}">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def main() -> None:
    """Fetch the art from npm and write the sprite sheet."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        render_sheet(Path(folder)).save(SHEET, optimize=True)


if __name__ == "__main__":
    main()
