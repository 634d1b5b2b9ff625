"""Train the demo model (`make world`), from nothing or from what ships; every stage resumes.

python -m bench.world                        # all stages, from nothing
python -m bench.world --shipped              # the UNet further, from what ships
python -m bench.world --shipped judge decoder
"""

from __future__ import annotations

import argparse

from bench.world import (
    pack,
    train_autoencoder,
    train_clip,
    train_decoder,
    train_judge,
    train_unet,
)

STAGES = {
    "judge": train_judge,
    "autoencoder": train_autoencoder,
    "clip": train_clip,
    "unet": train_unet,
    "decoder": train_decoder,
}


def main() -> None:
    """Run every stage in order, or some on top of what ships, then pack what will ship."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shipped",
        nargs="*",
        choices=("judge", "unet", "decoder"),
        help="keep the parts that ship and train these stages on (default: unet)",
    )
    chosen = parser.parse_args().shipped
    if chosen is None:
        train_unet.SHIPPED.unlink(missing_ok=True)
    else:
        pack.unpack()
    for name, stage in STAGES.items():
        if chosen is None or name in (chosen or ["unet"]):
            stage.main()
    pack.main()


if __name__ == "__main__":
    main()
