"""The command `generate`: prompts as pictures, with or without diffs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..io.files import write_atomically
from ..io.outputs import check_outputs, check_suffix
from ..settings import in_range
from .flags import add_command, add_list, add_model, add_sampler
from .inputs import check_all_fit, check_texts, named, read_diffs, sampler_settings, say_cut


def add_generate(commands: Any) -> None:
    """Declare `generate`."""
    about = "Draw one picture a prompt, side by side in one PNG."
    parser = add_command(commands, "generate", "draw prompts, with or without diffs", about)
    add_model(parser)
    parser.add_argument("--prompt", nargs="+", required=True, metavar="TEXT")
    about = "apply a diff; several are applied in the order given (strength -2..2, default 1)"
    add_list(parser, "--diff", "FILE[:STRENGTH]", about)
    parser.add_argument("--strict", action="store_true", help="refuse a diff for another base")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture (default: 0)")
    add_sampler(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> None:
    import numpy as np
    from PIL import Image

    from ..audit import to_pixels
    from ..diff import applied
    from ..frontend.pictures import FORMATS, encoded
    from ..models.load import load_model
    from .progress import passes_bar

    sampler_settings(args, [])
    check_texts("--prompt", args.prompt)
    in_range("seed", args.seed, 0, 2**48, whole=True)
    check_outputs([args.out], {"the model": args.model, **named(args.diff)})
    check_suffix(args.out, *FORMATS)
    diffs = read_diffs(args.diff)
    settings = sampler_settings(args, diffs)
    model = load_model(args.model, args.device, settings.distilled)
    check_all_fit(args.diff, diffs, model, args.strict)
    say_cut(model.encoder, args.prompt)
    seeds = range(args.seed, args.seed + len(args.prompt))
    with applied(model.denoiser, diffs), passes_bar("drawing") as on_step:
        pictures = [to_pixels(b) for b in model.generate(args.prompt, seeds, settings, on_step)]
    row = np.concatenate(list(np.concatenate(pictures)), axis=1)
    write_atomically(args.out, encoded(Image.fromarray(row), args.out.suffix))
    print(f"{len(args.prompt)} pictures in {args.out}")
