"""What scrubbing and relabelling take at full size, counted or timed without any weights.

python -m bench.scrub_cost full-size       # passes and memory, counted
python -m bench.scrub_cost eigenproblems   # seconds of one of each width, on this processor
"""

from __future__ import annotations

import argparse
import time

import torch

from trust_engine.benchmark.counting import count_scrubbing
from trust_engine.unlearn.scrubbing.eigen import SMALL, above
from trust_engine.unlearn.scrubbing.pictures import Recipe
from trust_engine.unlearn.scrubbing.run import ScrubPlan

WIDTHS = (320, 640, 1280, 2560, 5120)  # of the eigenproblems that are most


def full_size() -> str:
    """Write what scrubbing takes of UNets at full size: a row for each."""
    samples = Recipe().samples(concepts=1)
    heads = ("model", "blocks", "stored a sample, MB", f"of {samples} samples, GB",
             "moments of a block, GB", "computed in every pass", "passes", "TFLOP",
             "on the GPU, above sampling, GB", "relabelling there, GB (in place)",
             "its work, in passes",
             "eigenproblems (width: how many)")  # fmt: skip
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for family in ("sd15", "sd2", "sdxl"):
        size = count_scrubbing(family)
        widths = ", ".join(f"{d}: {n}" for d, n in size.widths.items())
        back = f"{size.relabelling_gb:.2f} ({size.in_place_gb:.2f})"
        rows.append(
            f"| {family} | {size.blocks} | {size.stored_mb:.1f} "
            f"| {size.stored_mb * samples / 1000:.1f} | {size.moments_gb:.2f} | {size.outside:.3%} "
            f"| {size.passes} | {size.tflop:.0f} | {size.above_gb:.2f} "
            f"| {back} | {size.relabelling} | {widths} |"
        )
    return "\n".join(rows)


def eigenproblems() -> str:
    """Time an eigenproblem of each width, of which 1.5 % are wanted: those alone, and all."""
    rows = ["| width | wanted | seconds for those | for all |", "|---|---|---|---|"]
    bound = ScrubPlan().tau
    for d in WIDTHS:
        x, y = (torch.randn(d, d, dtype=torch.float64) for _ in range(2))
        rest = x @ x.T / d + ScrubPlan().eps * torch.eye(d, dtype=torch.float64)
        lambdas = bound * (torch.arange(1, d + 1, dtype=torch.float64) / (0.015 * d)) ** -0.5
        mixed = torch.linalg.cholesky(rest) @ torch.linalg.qr(y).Q
        concept = mixed * lambdas @ mixed.T
        spent = []
        for small in (SMALL, d):
            started = time.perf_counter()
            found, *_ = above(concept, rest, bound, small)
            spent.append(f"{time.perf_counter() - started:.2f}")
        rows.append(f"| {d} | {len(found)} | {' | '.join(spent)} |")
    return "\n".join(rows)


def main() -> None:
    """Print one of the two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("full-size", "eigenproblems"))
    args = parser.parse_args()
    print(full_size() if args.what == "full-size" else eigenproblems())


if __name__ == "__main__":
    main()
