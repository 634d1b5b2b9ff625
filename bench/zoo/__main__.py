"""The zoo: small models of other kinds than the demo, on the demo's pictures.

python -m bench.zoo                            # what there is, and how far each is trained
python -m bench.zoo NAME [--out FOLDER]        # unpack one into an ordinary checkpoint
python -m bench.zoo train NAME|all             # train, or resume where it stopped
python -m bench.zoo trial RECIPE --until STEP  # a short training, to compare english's recipes
python -m bench.zoo pack NAME                  # put averaged weights into the repository
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from bench.world import pack as world
from bench.world.train_unet import SHIPPED
from bench.zoo import english
from bench.zoo.archive import ZooError, pack, path_of, read
from bench.zoo.members import (
    MEMBERS,
    QUEUE,
    SOURCE,
    member,
    train_member,
    trained,
    unpack_member,
)
from bench.zoo.pictures import draw, keep
from bench.zoo.unet import train
from trust_engine.io.files import write_atomically


def listing() -> str:
    """Say of each member what it is, its archive's size and its steps."""
    lines = []
    for name, one in MEMBERS.items():
        path = path_of(SOURCE.get(name, name))
        state = "no archive yet"
        if path.is_file():
            state = f"{path.stat().st_size / 1e6:.1f} MB, {read(path.stem).step} steps"
        lines.append(f"{name:11s} {one.says} ({state})")
    return "\n".join(lines)


def train_queue(names: list[str], stop: int | None) -> None:
    """Train one after the other."""
    for name in names:
        train_member(name, stop)


def pack_member(name: str) -> None:
    """Write an archive of what a training has reached."""
    if member(name).job is None:
        raise ZooError(f"{name} is made of {SOURCE[name]} when it is unpacked: pack that")
    data = pack(trained(name), member(name).units)
    write_atomically(path_of(name), data)
    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(1)
        keep(draw(name, unpack_member(name, Path(folder))), path_of(name).with_suffix(".png"))
    print(f"{path_of(name)}: {len(data) / 1e6:.1f} MB")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line: a verb and a name, or a name alone."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.zoo",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="[train|trial|pack] NAME")
    parser.add_argument("--until", type=int, help="stop at this step; the schedule stays")
    parser.add_argument("--out", type=Path, default=Path("out/zoo"), help="where to unpack to")
    args = parser.parse_args(arguments)
    verbs = ("train", "trial", "pack")
    if len(args.words) > 2 or (len(args.words) == 2 and args.words[0] not in verbs):
        parser.error("give NAME, or train, trial or pack and a name")
    if len(args.words) == 1 and args.words[0] in verbs:
        parser.error(f"{args.words[0]} needs a name")
    return args


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks."""
    if not args.words:
        print(listing())
    elif len(args.words) == 1:
        print(f"wrote {unpack_member(args.words[0], args.out)}")
    elif args.words[0] == "train":
        train_queue(list(QUEUE) if args.words[1] == "all" else [args.words[1]], args.until)
    elif args.words[0] == "pack":
        pack_member(args.words[1])
    else:
        if args.words[1] not in english.RECIPES:
            raise ZooError(f"no recipe {args.words[1]!r}; there are {', '.join(english.RECIPES)}")
        if not SHIPPED.is_file():
            world.unpack()
        train(english.trial(args.words[1]), args.until)


def main() -> int:
    """Run a command; a mistake is said in one line."""
    try:
        run(parse(sys.argv[1:]))
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
