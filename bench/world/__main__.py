"""Train the demo model from nothing (`make world`): each stage resumes, finished ones are kept."""

from __future__ import annotations

from bench.world import pack, train_autoencoder, train_clip, train_judge, train_unet


def main() -> None:
    """Run every stage in order, then pack what ships."""
    for stage in (train_judge, train_autoencoder, train_clip, train_unet, pack):
        stage.main()


if __name__ == "__main__":
    main()
