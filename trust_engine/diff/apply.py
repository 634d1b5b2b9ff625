"""Which model a diff belongs to, and how it is added to weights and taken back."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DiffError
from ..models.contract import Denoiser, projections
from ..models.load import LoadedModel
from ..models.unet_families import family_of
from ..phrases import plain
from ..settings import in_range
from .weight_diff import Offset, WeightDiff

STRONGEST = 2.0
LARGEST_LOSS = 0.05  # share of a change that a file's number type may lose
HASHED = 1 << 20  # entries of a weight that are hashed at once
OTHER_BASES = "take a diff made for this model, or switch {strict} off"
ADDED = 1 << 16  # entries that are added at once: few enough for a processor's cache
Where = Tensor | slice  # flat indices (n,), or a stretch of the flat weight


@dataclass
class Rounding:
    """What the base's number type lost: squared sums of the wanted change and of its error."""

    entries: int = 0
    unmoved: int = 0
    wanted: float = 0.0
    error: float = 0.0

    @property
    def lost(self) -> float:
        """Norm of what rounding lost, as a share of the norm of the change asked for."""
        return math.sqrt(self.error / self.wanted) if self.wanted else 0.0

    def __str__(self) -> str:
        if not self.entries:
            return "nothing to change"
        share = self.unmoved / self.entries
        return f"rounding lost {self.lost:.2%} of the change; {share:.1%} of entries did not move"


def fingerprint(denoiser: Denoiser) -> str:
    """Hash the q/k/v weights rounded to float16: float32 and float16 copies agree."""
    weights = projections(denoiser)
    return fingerprint_of(weights, lambda key: weights[key])


def fingerprint_of(keys: Iterable[str], read: Callable[[str], Tensor]) -> str:
    """Hash projections under their ldm names, read one at a time."""
    digest = hashlib.sha256()
    for key in sorted(keys):
        weight = read(key)
        digest.update(f"{key}{tuple(weight.shape)}".encode())
        for block in weight.flatten().split(HASHED):
            digest.update(block.to("cpu", torch.float16).numpy())
    return digest.hexdigest()[:32]


def describe_base(denoiser: Denoiser) -> dict[str, Any]:
    """Say for a diff's provenance which model it was made from."""
    shapes = {key: tuple(weight.shape) for key, weight in projections(denoiser).items()}
    return {
        "base": fingerprint(denoiser),
        "family": family_of(shapes),
        "prediction": denoiser.schedule.prediction,
    }


def check_fits(
    diff: WeightDiff,
    denoiser: Denoiser,
    name: str = "diff",
    strict: bool = False,
    base: str | None = None,
) -> str | None:
    """Raise DiffError unless the model has the weights; return a warning for another base.

    strict: refuse another base of the same family as well; base: the model's fingerprint, where
    it is known already.
    """
    parameters = dict(denoiser.module.named_parameters())
    shapes = {key: tuple(weight.shape) for key, weight in projections(denoiser).items()}
    for key in diff.offsets:
        with contextlib.suppress(KeyError):  # check_family names what is missing
            shapes[key] = tuple(parameters[denoiser.parameter_name(key)].shape)
    check_family(diff, shapes, name)
    prediction = denoiser.schedule.prediction
    return check_base(diff, base or fingerprint(denoiser), name, strict, prediction)


def check_family(diff: WeightDiff, shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Raise DiffError unless a model of these shapes has every weight the diff changes."""
    family, here = diff.provenance.get("family"), family_of(shapes)
    for key, offset in diff.offsets.items():
        if shapes.get(key) != offset.shape:
            raise DiffError(
                f"{name}: made for another kind of model ({plain(family or 'unnamed', 40)}, "
                f"this is {here or 'unnamed'}: no {key} {list(offset.shape)}); "
                "choose a model of its family"
            )
    if family and here and family != here:
        raise DiffError(
            f"{name}: made for another kind of model ({plain(family, 40)}, this is {here})"
        )


def check_base(
    diff: WeightDiff,
    actual: str,
    name: str,
    strict: bool,
    prediction: str | None = None,
    known: str | None = None,
) -> str | None:
    """Return a warning that names both fingerprints for another base; raise it when strict.

    known: how that base came to be another one, if that is known.
    """
    expected, predicts = diff.provenance.get("base"), diff.provenance.get("prediction")
    other = prediction and predicts and prediction != predicts
    if expected == actual and not other:
        return None
    bases = f"base {plain(expected or 'unknown', 40)}, this is {actual}"
    if other:
        bases += f"; it predicts {plain(predicts, 9)}, this {prediction}"
    why = known or "made for another model"
    if strict:
        raise DiffError(f"{name}: {why} ({bases})", remedy=OTHER_BASES)
    why = known or "made for another model of the family"
    return f"{name}: {why} ({bases}); it is applied, but its audit does not cover this model"


@contextlib.contextmanager
def applied(denoiser: Denoiser, diffs: Sequence[tuple[WeightDiff, float]]) -> Iterator[Rounding]:
    """Add diffs times strengths, in order, for the duration; then restore the very same bits.

    Yields what the rounding of the model's number type lost.
    """
    parameters: dict[str, Tensor] = dict(denoiser.module.named_parameters())
    backup: list[tuple[Tensor, Where, Tensor]] = []
    rounding = Rounding()
    try:
        with torch.inference_mode():  # hosts' weights may be inference tensors
            for diff, strength in diffs:
                in_range("strength", strength, -STRONGEST, STRONGEST)
                for key, offset in diff.offsets.items():
                    weight = parameters[denoiser.parameter_name(key)].detach()
                    for old in add(weight, offset, strength, rounding, key):
                        backup.append((weight, *old))
        yield rounding
    finally:
        with torch.inference_mode():
            for weight, where, values in reversed(backup):
                _put(weight, where, values)


def add(
    weight: Tensor, offset: Offset, strength: float, rounding: Rounding, key: str
) -> Iterator[tuple[Where, Tensor]]:
    """Add strength * offset in place; yields (where, old values) before each block is changed."""
    if tuple(weight.shape) != offset.shape:
        raise DiffError(f"{key}: the diff has {offset.shape}, the model {tuple(weight.shape)}")
    if not strength:
        return
    for where, values in offset.blocks(ADDED, weight.device):
        change = values if strength == 1 else strength * values
        old = _take(weight, where)
        before = old.float()
        new = (before + change).to(old.dtype)
        moved = new.float() - before
        missed = moved - change
        error = float(missed.dot(missed))  # not finite if any entry is not
        if not math.isfinite(error):
            if not bool(before.isfinite().all()):
                raise DiffError(
                    f"{key}: the model holds NaN or infinite values where the diff changes it; it "
                    "is damaged, or was merged or converted badly"
                )
            raise DiffError(
                f"{key}: strength {strength:g} is too much for {old.dtype}; choose a smaller one"
            )
        yield where, old
        _put(weight, where, new)
        rounding.entries += len(change)
        rounding.unmoved += len(change) - int(moved.count_nonzero())
        rounding.wanted += float(change.dot(change))
        rounding.error += error


def _take(weight: Tensor, where: Where) -> Tensor:
    if weight.element_size() == 1:  # float8 cannot be indexed, its bytes can
        return _take_from(weight.view(torch.uint8), where).view(weight.dtype)
    return _take_from(weight, where)


def _take_from(weight: Tensor, where: Where) -> Tensor:
    if not weight.is_contiguous():
        return weight[_places(weight, where)]
    flat = weight.view(-1)
    return flat[where].clone() if isinstance(where, slice) else flat.index_select(0, where)


def _put(weight: Tensor, where: Where, values: Tensor) -> None:
    if weight.element_size() == 1:
        weight, values = weight.view(torch.uint8), values.view(torch.uint8)
    if not weight.is_contiguous():
        weight[_places(weight, where)] = values
    elif isinstance(where, slice):
        weight.view(-1)[where] = values
    else:
        weight.view(-1).index_copy_(0, where, values)


def _places(weight: Tensor, where: Where) -> tuple[Tensor, ...]:
    """Turn flat indices into one index a dimension; hosts may hold weights in other strides."""
    indices = where
    if isinstance(indices, slice):
        indices = torch.arange(indices.start, indices.stop, device=weight.device)
    places: list[Tensor] = []
    for size in reversed(weight.shape):
        places.append(indices % size)
        indices = indices // size
    return tuple(reversed(places))


def patched(model: LoadedModel, diffs: Sequence[tuple[WeightDiff, float]]) -> LoadedModel:
    """Return the model under diffs: the weights `applied` gives, to the bit; it is only read."""
    with torch.inference_mode(False):
        before = {n: p.detach().clone() for n, p in model.denoiser.module.named_parameters()}
        with applied(model.denoiser, diffs):
            changed = {
                name: p.detach().clone()
                for name, p in model.denoiser.module.named_parameters()
                if not torch.equal(p, before[name])
            }
    return model.with_weights(changed)
