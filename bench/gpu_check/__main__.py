"""`python -m bench.gpu_check pack OUT`, then there `./go.sh [--dry]`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trust_engine.errors import OutputError
from trust_engine.io.files import write_atomically

LONGEST = 240  # seconds of a part
PART = ["-m", "bench.gpu_check", "one"]  # what does one, in a process of its own


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack, run all parts, or, in a process of its own, one."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check")
    actions = parser.add_subparsers(required=True)
    packing = actions.add_parser("pack", help="lay out what travels; COMFYUI_PATH names ComfyUI")
    packing.add_argument("out", type=Path)
    packing.add_argument("--python", default="3.12", help="that the wheels are for (default: 3.12)")
    packing.set_defaults(run=_pack)
    running = actions.add_parser("run", help="do all parts that are not done yet")
    running.add_argument("--out", type=Path, default=Path("gpu_check"), help="results go there")
    running.add_argument("--part", nargs="+", default=[], help="only these")
    running.add_argument("--dry", action="store_true", help="on the CPU, with a small model")
    running.add_argument("--limit", type=int, default=LONGEST, help="seconds a part (default: 240)")
    running.set_defaults(run=_run)
    one = actions.add_parser("one")
    one.add_argument("part")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--dry", action="store_true")
    one.set_defaults(run=_one)
    args = parser.parse_args(arguments)
    try:
        return int(args.run(args))
    except OutputError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2


def _pack(args: argparse.Namespace) -> int:
    from .pack import pack

    size = pack(args.out, Path(os.environ.get("COMFYUI_PATH", "")), args.python)
    print(f"{args.out}: {size / 2**20:.1f} MiB of the 64 that travel; run go.sh there")
    return 0


def _run(args: argparse.Namespace) -> int:
    """Do part by part; a part that failed or ran out of time is said, and the next begins."""
    from .parts import PARTS

    args.out.mkdir(parents=True, exist_ok=True)
    unknown = [name for name in args.part if name not in PARTS]
    if unknown:
        raise OutputError(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    failed = 0
    for name in args.part or PARTS:
        if known(args.out).get(name, {}).get("done"):
            print(f"{name}: done already", flush=True)
            continue
        command = [sys.executable, *PART, name, "--out", str(args.out)]
        began = time.monotonic()
        with (args.out / "log.txt").open("ab") as log:
            try:
                code = subprocess.run(
                    [*command, *(["--dry"] if args.dry else [])],
                    stdout=log, stderr=log, timeout=args.limit,
                ).returncode  # fmt: skip
                word = "done" if not code else f"failed ({_last(args.out / 'log.txt')})"
            except subprocess.TimeoutExpired:
                code, word = 1, f"ran longer than {args.limit} s; what it found is kept"
        if code:
            failed += 1
            note(args.out, name, {"failed": word})
        print(f"{name}: {word} after {time.monotonic() - began:.0f} s", flush=True)
    return int(bool(failed))


def _last(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "no word"


def _one(args: argparse.Namespace) -> int:
    from .parts import PARTS

    note(args.out, args.part, {"failed": None, "dry": args.dry})
    for name, figures in PARTS[args.part](args.dry, args.out):
        note(args.out, args.part, {name: figures})
    note(args.out, args.part, {"done": True})
    return 0


def known(out: Path) -> dict[str, dict[str, Any]]:
    """Read the results so far, {part: {figures' name: figures}}."""
    path = out / "results.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


def note(out: Path, part: str, figures: dict[str, Any]) -> None:
    """Add to a part's results, and write them out at once."""
    results = known(out)
    results[part] = {**results.get(part, {}), **figures}
    write_atomically(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
