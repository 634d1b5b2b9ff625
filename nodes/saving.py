"""TRUST Save Diff and Export LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ..trust_engine.diff import WeightDiff, check_audit, save_diff
from ..trust_engine.diff.label import describe, label
from ..trust_engine.diff.lora import export_dense, export_lora
from .declaring import Output, node
from .diffs import with_notes
from .file_names import check_prefix
from .folders import DIFFS, new_file
from .inputs import choice, number, socket, text, verdict
from .sockets import DIFF, REPORT

FORMATS = ("dense", "exact", "low rank")
SHOWN = ("ua", "synonyms", "ira", "cra_style", "cra_background")


@node("save", ends=True)
class TrustSaveDiff:
    """Write a diff, whole or not at all."""

    DESCRIPTION = f"Saves a diff into `models/{DIFFS}`, with where it came from and its audit."

    REQUIRED: ClassVar = {
        "diff": socket(DIFF, "From Unlearn or Merge Diffs."),
        "filename_prefix": text("trust", "Name of the file, or folder/name; a number is "
                                "added, and nothing is overwritten."),
    }  # fmt: skip
    OPTIONAL: ClassVar = {
        "author": text("", "Who made it; shown on its label."),
        "licence": text("", "Under which licence others may use it."),
        "notes": text("", "What others should know.", multiline=True, hint="notes"),
        "report": socket(REPORT, "From Audit: its figures go onto the label."),
    }  # fmt: skip
    GIVES: ClassVar = (Output("path", "STRING", "The path of the file."),)

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        """Refuse a name that cannot be written on every system."""
        return filename_prefix is None or verdict(lambda: check_prefix(filename_prefix))

    def save(
        self,
        diff: WeightDiff,
        filename_prefix: str,
        author: str = "",
        licence: str = "",
        notes: str = "",
        report: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write the file and return its path."""
        path = new_file(DIFFS, filename_prefix)
        check_audit(diff, figures(report) or None, path.name)
        noted = with_notes(diff, author=author.strip(), licence=licence.strip(),
                           notes=notes.strip(), audit=figures(report))  # fmt: skip
        save_diff(noted, path)
        shown = label(path.name, describe(noted, path.stat().st_size))
        return {"ui": {"text": [shown]}, "result": (str(path),)}


@node("export", ends=True)
class TrustExportLora:
    """Write a file that the stock LoRA loaders of ComfyUI, A1111 and Forge read."""

    DESCRIPTION = (
        "Exports a diff as a LoRA file into the first loras folder, where the stock Load LoRA node "
        "finds it; use strength 1 there. For those who do not have this extension."
    )

    REQUIRED: ClassVar = {
        "diff": socket(DIFF, "From Unlearn, Load Diff or Merge Diffs."),
        "filename_prefix": text("trust", "Name of the file, or folder/name; a number is "
                                "added, and nothing is overwritten."),
        "format": choice(FORMATS, FORMATS[0], "dense: 16 bits, 60 MB for SD 1.x, 0.9 GB "
                         "for SDXL. exact: 32 bits, twice as large. low rank: smaller, "
                         "loses what `error` allows."),
        "error": number(0.1, 0.0, 1.0, 0.01, "Low rank only: how much of each weight's "
                        "change may be lost."),
    }  # fmt: skip
    GIVES: ClassVar = (
        Output("path", "STRING", "The path of the file."),
        Output("report", "STRING", "What the export lost."),
    )

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str | None = None) -> bool | str:
        """Refuse a name that cannot be written on every system."""
        return filename_prefix is None or verdict(lambda: check_prefix(filename_prefix))

    def export(
        self, diff: WeightDiff, filename_prefix: str, format: str, error: float
    ) -> dict[str, Any]:
        """Write the file; return its path and what was lost."""
        path = new_file("loras", filename_prefix)
        if format == "low rank":
            told = export_lora(diff, path, error)
        else:
            told = export_dense(diff, path, torch.float32 if format == "exact" else torch.float16)
        text = f"{path.name}: {told}"
        return {"ui": {"text": [text]}, "result": (str(path), text)}


def figures(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Take from an audit what a label shows."""
    if not report:
        return {}
    told = {k: report[k] for k in SHOWN if isinstance(report.get(k), Mapping) and report[k]["n"]}
    about = {"level": report.get("level"), "judge": (report.get("judge") or {}).get("name")}
    about |= {"base": report.get("base"), "diffs": report.get("diffs")}
    return {**told, **{k: v for k, v in about.items() if v}, "verdict": report.get("verdict", "")}
