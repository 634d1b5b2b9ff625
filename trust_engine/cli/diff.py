"""The commands `diff info|verify|apply|merge|export|annotate|fingerprint`."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import strict_json
from ..errors import DiffError, SpecError
from ..frontend.wording import some
from ..io.outputs import check_folder, check_outputs, check_suffix
from .flags import add_command
from .inputs import named, read_diffs

if TYPE_CHECKING:
    from ..diff import WeightDiff

FORMATS = {
    "dense": "for stock Lora loaders of ComfyUI, A1111 and Forge; exact to float16",
    "lora": "the same, small by low rank; --error bounds what is lost",
    "checkpoint": "the whole model with the diff in it; needs --model",
    "unet-folder": "a diffusers UNet folder; needs --model",
    "unet-pt": "a UNet state dict (pickle) for benchmarks that read nothing else; needs --model",
}
ABOUT = (
    "Work with diff files. FILE:STRENGTH applies a share of a diff, -2 to 2; several are taken in "
    "the order given."
)
SUFFIX, PICKLES = ".safetensors", (".pt", ".pth", ".bin")
LONGEST_AUDIT = 1 << 20
PAIRED = 6  # diffs of a merge that are compared pair by pair, at most
LINES = 8  # comparisons that are printed of a larger one


def add_diff(commands: Any) -> None:
    """Declare `diff` and its actions."""
    says = "inspect, check, apply, merge, convert and annotate diff files"
    parser = add_command(commands, "diff", says, ABOUT)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _action(actions, "info", _info, "show what a diff is: concept, base, audit", "file", "json")
    _action(actions, "verify", _verify, "check a diff, and whether a model has its q, k, v",
            "file", "model?", "strict")  # fmt: skip
    _action(actions, "apply", _apply, "write a model file with diffs in it",
            "files", "model", "strict", "out")  # fmt: skip
    merge = _action(actions, "merge", _merge, "compose diffs into one and say how they overlap",
                    "files", "model?", "out", "json")  # fmt: skip
    merge.add_argument("--how", default="sum", choices=("sum", "mean", "strongest", "fit"),
                       help="where several move one entry: their sum (default), mean, or the "
                       "largest; fit: each concept meets its own diff and the rest none, for "
                       "more than two or three; needs --model")  # fmt: skip
    merge.add_argument("--keep", type=float, metavar="SHARE",
                       help="keep each layer's largest changes only, e.g. 0.03")  # fmt: skip
    export = _action(actions, "export", _export, "write what programs without TRUST can load",
                     "files", "model?", "strict", "out")  # fmt: skip
    listed = "; ".join(f"{name}: {text}" for name, text in FORMATS.items())
    export.add_argument("--format", required=True, choices=FORMATS, help=listed)
    export.add_argument("--error", type=float, default=0.1,
                        help="of lora: largest relative error a weight (default: 0.1)")  # fmt: skip
    export.add_argument("--max-rank", type=int, metavar="N", help="of lora: may exceed --error")
    annotate = _action(actions, "annotate", _annotate,
                       "note author, licence or an audit; the diff itself stays the same",
                       "file", "out?")  # fmt: skip
    for name in ("author", "licence", "notes"):
        annotate.add_argument(f"--{name}", metavar="TEXT", help="an empty text removes it")
    annotate.add_argument("--audit", type=Path, metavar="FILE.json", help="what audit --json wrote")
    _action(actions, "fingerprint", _fingerprint, "name a model's weights, as diffs do",
            "source", "json")  # fmt: skip


def _action(
    actions: Any, name: str, run: Callable[..., None], text: str, *flags: str
) -> argparse.ArgumentParser:
    parser = add_command(actions, name, text, f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(run=run)
    for flag in flags:
        if flag == "file":
            parser.add_argument("file", type=Path, metavar="FILE")
        elif flag == "files":
            parser.add_argument("files", nargs="+", metavar="FILE[:STRENGTH]")
        elif flag == "source":
            parser.add_argument("model", metavar="demo|PATH")
        elif flag.startswith("model"):
            parser.add_argument("--model", required=flag == "model", metavar="demo|PATH",
                                help="a checkpoint, a UNet file or a diffusers folder")  # fmt: skip
        elif flag.startswith("out"):
            parser.add_argument("--out", type=Path, required=flag == "out", metavar="PATH")
        elif flag == "json":
            parser.add_argument("--json", action="store_true", help="print JSON")
        else:
            parser.add_argument("--strict", action="store_true",
                                help="refuse another base of the same family")  # fmt: skip
    return parser


def _info(args: argparse.Namespace) -> None:
    from ..diff import load_diff
    from ..diff.label import describe, label

    told = describe(load_diff(args.file), args.file.stat().st_size)
    print(json.dumps(told, indent=1) if args.json else label(args.file.name, told, " (see --json)"))


def _verify(args: argparse.Namespace) -> None:
    from ..diff import load_diff, payload_sha256
    from ..diff.base_model import open_base

    diff, compared = load_diff(args.file), ""
    if args.model:
        with open_base(_source(args.model)) as base:
            warnings = base.check([(diff, 1.0)], [str(args.file)], args.strict)
        _warn(warnings)
        compared = _compared(diff, args.model, exact=not warnings)
    print(f"{args.file}: sound, sha256 {payload_sha256(diff)}{compared}")


def _compared(diff: WeightDiff, model: str, exact: bool) -> str:
    """Say what of a model was compared with what a diff records, and what was not."""
    from ..models.unet_keys import projection_of

    found = "the very ones" if exact else "not the ones"
    others = sum(projection_of(key) is None for key in diff.offsets)
    more = f", of which it changes {others:,}" if others else ""
    return (
        f"\n{model}: has every weight that the diff changes; its cross-attention q, k and v are "
        f"{found} that it was made from. Not compared, for a diff does not record them: the UNet's "
        f"other weights{more}, text encoder, VAE"
    )


def _apply(args: argparse.Namespace) -> None:
    args.format = "checkpoint"
    _write_model(args)


def _merge(args: argparse.Namespace) -> None:
    from ..diff import combine, energy, refuse_empty, save_diff, thinned
    from ..settings import in_range

    if args.keep is not None:
        in_range("keep", args.keep, 0.0, 1.0)
    check_outputs([args.out], {"the model": args.model, **named(args.files)})
    check_suffix(args.out, SUFFIX)
    parts = read_diffs(args.files)
    merged = _fitted(args, parts) if args.how == "fit" else combine(parts, args.how)
    pairs = _overlaps(args.files, parts)
    whole = energy(merged)
    if args.keep is not None:
        merged = thinned(merged, args.keep)
    refuse_empty(merged)
    save_diff(merged, args.out)
    kept = energy(merged) / whole if whole else 1.0
    result = {"diff": str(args.out), "entries_changed": merged.changed,
              "energy_kept": round(kept, 6), "overlap": pairs}  # fmt: skip
    if args.json:
        print(json.dumps(result))
        return
    if len({diff.provenance.get("base") for diff, _ in parts}) > 1:
        _warn(["the diffs were made from other bases of one family; no audit covers the result"])
    for line in _told(pairs):
        print(line)
    print(f"{args.out}: {merged.changed:,} entries, {kept:.1%} of the squared change kept")


def _overlaps(
    names: Sequence[str], parts: Sequence[tuple[WeightDiff, float]]
) -> list[dict[str, Any]]:
    """Compare diffs pair by pair, or, when they are many, each with all the others together."""
    from ..diff import overlap, overlap_with_rest, scaled

    if len(parts) > PAIRED:
        told = zip(names, overlap_with_rest(parts), strict=True)
        return [{"first": name, "second": "the others", **one.as_dict()} for name, one in told]
    weighed = [scaled(*part) for part in parts]
    return [
        {"first": names[i], "second": names[j], **overlap(weighed[i], weighed[j]).as_dict()}
        for i in range(len(parts))
        for j in range(i + 1, len(parts))
    ]


def _told(pairs: Sequence[dict[str, Any]]) -> list[str]:
    """Put comparisons into lines; of many, those that share most, and how many say what."""
    shown = sorted(pairs, key=lambda pair: -pair["of_first"])[:LINES] if _many(pairs) else pairs
    lines = [
        f"{pair['first']} and {pair['second']}: {pair['shared']:,} entries in common "
        f"({pair['of_first']:.1%} and {pair['of_second']:.1%} of each; {pair['by_chance']:.1%} "
        f"by chance), {pair['opposed']:.0%} opposed, cosine {pair['cosine']:.2f}: "
        f"{pair['verdict']}"
        for pair in shown
    ]
    if _many(pairs):
        counts = Counter(pair["verdict"] for pair in pairs)
        rest = "; ".join(f"{count}: {verdict}" for verdict, count in counts.most_common())
        lines.append(f"of {len(pairs)} diffs, each beside all the others ({rest})")
    return lines


def _many(pairs: Sequence[dict[str, Any]]) -> bool:
    return bool(pairs) and pairs[0]["second"] == "the others"


def _fitted(args: argparse.Namespace, parts: Sequence[tuple[WeightDiff, float]]) -> WeightDiff:
    from ..diff import fitted
    from ..diff.base_model import open_base
    from ..models.load import load_model

    if not args.model:
        raise SpecError("--how fit asks the model's text encoder; add --model")
    with open_base(_source(args.model)) as base:
        _warn(base.check(parts, args.files, strict=False))
    model = load_model(args.model, "cpu")
    return fitted(parts, model.encoder, model.vocabulary, model.styles)


def _export(args: argparse.Namespace) -> None:
    if args.format not in ("dense", "lora"):
        if not args.model:
            raise SpecError(f"--format {args.format} needs the model it goes into; add --model")
        _write_model(args)
        return
    from ..diff import combine
    from ..diff.base_model import open_base
    from ..diff.lora import export_dense, export_lora

    check_outputs([args.out], {"the model": args.model, **named(args.files)})
    check_suffix(args.out, SUFFIX)
    parts = read_diffs(args.files)
    if args.model:
        with open_base(_source(args.model)) as base:
            _warn(base.check(parts, args.files, args.strict))
    diff = combine(parts) if len(parts) > 1 or parts[0][1] != 1.0 else parts[0][0]
    if args.format == "dense":
        report = export_dense(diff, args.out)
    else:
        report = export_lora(diff, args.out, args.error, args.max_rank)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:,.1f} MB, {report}")


def _write_model(args: argparse.Namespace) -> None:
    from ..diff import touched
    from ..diff.bake import left_out, write_checkpoint, write_unet_folder, write_unet_pt
    from ..diff.base_model import open_base

    write: Any = {
        "checkpoint": write_checkpoint,
        "unet-folder": write_unet_folder,
        "unet-pt": write_unet_pt,
    }[args.format]
    source = _source(args.model)
    inputs = {"the model": args.model, **named(args.files)}
    if args.format == "unet-folder" or (args.format == "checkpoint" and source.is_dir()):
        check_folder(args.out, inputs)
    else:
        check_outputs([args.out], inputs)
        check_suffix(args.out, *(PICKLES if args.format == "unet-pt" else (SUFFIX,)))
    parts = read_diffs(args.files)
    if not touched(parts):
        raise DiffError("the diffs change nothing at these strengths, so there is nothing to apply")
    with open_base(source) as base:
        _warn(base.check(parts, args.files, args.strict))
        if args.format == "checkpoint":
            _note(base.remarks())
            if gone := left_out(base):
                _note([f"left out of {args.out}: {some(gone, 8)} (no part of the model that is "
                       "read, or another copy of it)"])  # fmt: skip
        lost = write(base, parts, args.out)
    print(f"{args.out}: {touched(parts):,} entries changed; {lost}")


def _annotate(args: argparse.Namespace) -> None:
    from ..diff import annotate_diff, payload_sha256

    notes: dict[str, Any] = {
        name: text or None
        for name in ("author", "licence", "notes")
        if (text := getattr(args, name)) is not None
    }
    if args.audit is not None:
        notes["audit"] = _read_audit(args.audit)
    if not notes:
        raise SpecError("nothing to note; give --author, --licence, --notes or --audit")
    out = args.out or args.file
    mine = {} if args.out is None else {"the diff": args.file}
    check_outputs([out], {**mine, "the audit": args.audit})
    check_suffix(args.out, SUFFIX)
    diff = annotate_diff(args.file, notes, out)
    print(f"{out}: {', '.join(notes)} noted; sha256 {payload_sha256(diff)} as before")


def _read_audit(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LONGEST_AUDIT:
            raise DiffError(f"{path}: too long for a diff's notes ({LONGEST_AUDIT:,} bytes)")
        audit = strict_json.parse(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DiffError(f"{path}: no audit in JSON can be read there ({error})") from error
    if not isinstance(audit, dict):
        raise DiffError(f"{path}: an audit is a JSON object")
    return audit


def _fingerprint(args: argparse.Namespace) -> None:
    from ..diff.base_model import open_base

    with open_base(_source(args.model)) as base:
        family = base.family.name if base.family else None
        told = {"base": base.fingerprint(), "family": family}
    print(json.dumps(told) if args.json else f"{told['base']}  {family or '?'}  {args.model}")


def _source(model: str) -> Path:
    if model != "demo":
        return Path(model)
    from ..models.load import DEMO

    return DEMO


def _note(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"trust_engine: note: {' '.join(note.split())}", file=sys.stderr)


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(f"trust_engine: warning: {' '.join(warning.split())}", file=sys.stderr)
