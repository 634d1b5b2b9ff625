"""What `unlearn` says at its end: test pictures, and the report that rests on them."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from ..errors import TrustError
from ..settings import in_range

if TYPE_CHECKING:
    from ..diff import WeightDiff
    from ..frontend.before_after import BeforeAfter
    from ..models.load import LoadedModel
    from ..unlearn.run import Unlearning


def add_looking(parser: argparse.ArgumentParser) -> None:
    """Declare how a finished run is looked at."""
    group = parser.add_argument_group(
        "test pictures", "drawn at the end without and with the diff; the report rests on them"
    )
    group.add_argument(
        "--pictures", type=int, default=None, metavar="N",
        help="how many, half of them of what must stay, 0: none (default: 8, which takes 384 UNet "
        "passes besides those of training)",
    )  # fmt: skip
    group.add_argument(
        "--judge", default="auto", metavar="auto|none|demo|clip:PATH",
        help="who says what they show; auto: the demo's judge for the demo model, else a CLIP that "
        "is on this machine already, else nobody, and only how far they moved is said",
    )  # fmt: skip


def check_looking(args: argparse.Namespace) -> None:
    """Refuse a number of pictures, or a judge that is not there; raises SpecError or ModelError."""
    from ..audit.judges.base import check_judge
    from ..frontend.subjects import COUNT, MOST

    args.pictures = COUNT if args.pictures is None else args.pictures
    in_range("pictures", args.pictures, 0, MOST, whole=True)
    if args.judge not in ("auto", "none"):
        check_judge(args.judge)


def looked(
    args: argparse.Namespace, model: LoadedModel, run: Unlearning, diff: WeightDiff
) -> tuple[BeforeAfter | None, list[str]]:
    """Look at a run whose diff is saved already; what keeps us from it is said, no more."""
    from ..frontend.looking import look
    from ..models.memory import exhaustion_told
    from .progress import passes_bar

    if not args.pictures:
        return None, []
    try:
        with exhaustion_told(), passes_bar("test pictures") as on_step:
            return look(model, run, diff, args.pictures, args.judge, on_step), []
    except KeyboardInterrupt:
        why = "stopped by you"
    except (TrustError, MemoryError) as error:
        why = " ".join(str(error).split())
    return None, [f"No test pictures: {why}. The diff is saved."]


def tell(args: argparse.Namespace, model: LoadedModel, run: Unlearning, diff: WeightDiff) -> None:
    """Look at a finished run and print its report, as JSON if asked for."""
    from ..frontend.run_report import as_dict, run_report

    seen, said = looked(args, model, run, diff)
    report = run_report(run, diff, seen, said=said)
    if args.json:
        told: dict[str, Any] = {"diff": str(args.out), **as_dict(run, diff, report, seen)}
        print(json.dumps(told))
    else:
        print(f"{args.out}: {report}")
