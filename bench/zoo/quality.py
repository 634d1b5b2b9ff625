"""What members draw, by the judge, and a grid of it.

python -m bench.zoo.quality NAME...     # bench/figures/zoo/NAME.json, docs/images/zoo-NAME.jpg
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from bench.world.quality import grid, measure
from bench.zoo.members import MEMBERS, unpack_member
from bench.zoo.pictures import load, settings_of
from trust_engine.io.files import write_atomically

FIGURES, PICTURES = Path("bench/figures/zoo"), Path("docs/images")
IMAGES, PAIRS = 1, 60  # an object x style, and of two objects


def main() -> None:
    """Measure members, each drawn as it is meant to be."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="+", choices=MEMBERS)
    for name in parser.parse_args().names:
        with tempfile.TemporaryDirectory() as folder:
            model, settings = load(name, unpack_member(name, Path(folder))), settings_of(name)
            shown = grid(model, settings)
            shown.resize((shown.width // 2, shown.height // 2)).save(
                PICTURES / f"zoo-{name}.jpg", quality=75
            )
            found = measure(model, IMAGES, PAIRS, settings)
        write_atomically(FIGURES / f"{name}.json", (json.dumps(found, indent=1) + "\n").encode())
        print(name, json.dumps(found["figures"], indent=1), flush=True)


if __name__ == "__main__":
    main()
