"""Train the demo model (`make world`), from nothing or from what ships; every stage resumes."""

from __future__ import annotations

import argparse

from bench.world import pack, train_autoencoder, train_clip, train_judge, train_unet


def main() -> None:
    """Run every stage in order, or the UNet's alone, then pack what ships."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shipped", action="store_true", help="keep the parts that ship and train the UNet on"
    )
    if parser.parse_args().shipped:
        pack.unpack()
        train_unet.main()
        pack.main()
        return
    for stage in (train_judge, train_autoencoder, train_clip, train_unet, pack):
        stage.main()


if __name__ == "__main__":
    main()
