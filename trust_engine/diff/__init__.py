"""Diffs, the things users pass around: make, save, load, apply, compare, combine."""

from __future__ import annotations

from .apply import Rounding, applied, check_fits, describe_base, fingerprint
from .arithmetic import (
    Overlap,
    added,
    between,
    combine,
    energy,
    overlap,
    overlap_with_rest,
    refuse_empty,
    scaled,
    subtracted,
    thinned,
    touched,
)
from .file import (
    FORMAT,
    FORMAT_VERSION,
    annotate_diff,
    check_audit,
    load_diff,
    payload_sha256,
    save_diff,
)
from .least_squares import fitted
from .weight_diff import LowRankOffset, Offset, SparseOffset, WeightDiff

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "LowRankOffset",
    "Offset",
    "Overlap",
    "Rounding",
    "SparseOffset",
    "WeightDiff",
    "added",
    "annotate_diff",
    "applied",
    "between",
    "check_audit",
    "check_fits",
    "combine",
    "describe_base",
    "energy",
    "fingerprint",
    "fitted",
    "load_diff",
    "overlap",
    "overlap_with_rest",
    "payload_sha256",
    "refuse_empty",
    "save_diff",
    "scaled",
    "subtracted",
    "thinned",
    "touched",
]
