"""Diffs, the things users pass around: make, save, load, apply, compare, combine.

weight_diff     the values: what is added to one weight, and to a whole UNet
apply           which model a diff belongs to; adding it to weights and taking it off
overlaid        a denoiser under offsets, of which no weight is written
arithmetic      add, subtract, scale, merge, thin out
overlaps        what two diffs both move, and whether they pull it the same way
least_squares   merging by fit: each concept meets its own diff, the rest none
file            diff files: bytes, checks, notes
packing         how a file holds what is added to one weight
label           what a file says of itself, for people
base_model      a model on disk under ldm names, one tensor at a time
bake            patched models on disk
lora            files for stock LoRA loaders
lora_factors    factors of low rank as those loaders multiply them
model_sampling  how a diff's model is sampled, by its own spec
"""

from __future__ import annotations

from .apply import Rounding, applied, check_fits, describe_base, fingerprint
from .arithmetic import (
    added,
    between,
    combine,
    energy,
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
from .overlaps import Overlap, overlap, overlap_with_rest
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
