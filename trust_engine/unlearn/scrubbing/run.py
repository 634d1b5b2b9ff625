"""From noised pictures to edits, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import SpecError
from ...models.contract import Denoiser, compute_dtype, device_of
from ...models.parameters import exchanged
from ...models.precision import in_float32
from .blocks import Block, blocks_of
from .directions import Edit, Removal, Spectrum, confirmed, edited, harms
from .moments import Moments
from .noised import Noised, shown_to
from .replay import GIGABYTE, Outputs, Replay

ORDER = 2  # passes of one sample, to learn which blocks there are and what they return


@dataclass(frozen=True)
class ScrubPlan:
    """How much is taken out.

    tau: directions with more than this many times the rest's energy go; eps: of the mean variance,
    added to the rest's before it is divided by; soft: shrink to the rest's energy, or remove;
    checked: of these only as many as stand out on pictures that they were not found on, each half
    of the samples being tried on the other;
    centred: around the rest's mean, where a layer has a bias to hold it; spared: layers, by parts
    of their ldm name, that are left as they are; batch: samples a pass; memory: bytes of main
    memory that stored outputs may take, the rest of them going to files.
    """

    tau: float = 4.0
    eps: float = 0.02
    soft: bool = True
    checked: bool = False
    centred: bool = False
    spared: tuple[str, ...] = ()
    batch: int = 12
    memory: int = 2 * GIGABYTE

    def __post_init__(self) -> None:
        if self.tau < 1:
            raise SpecError(f"tau is {self.tau:g}; below 1 it takes out what the rest has more of")
        if not 0 < self.eps <= 1:
            raise SpecError(f"eps is {self.eps:g}; it must lie between 0 and 1")


@dataclass(frozen=True)
class ScrubReport:
    """Progress: batches done of all, UNet passes and directions so far, the block at work."""

    done: int
    total: int
    passes: int
    directions: int
    block: str = ""


class Scrubbing:
    """One scrubbing: iterate over it for progress, then read `edits`.

    The denoiser's weights are only read: those that were scrubbed stand in for them during a pass.
    What it does is decided by its inputs alone. Between two reports nothing hangs on the network,
    and `begun` takes up what `edits` and `blocks_done` were at any such moment: the edits that come
    of it are the same to the bit where the network's results are.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        concepts: Sequence[Noised],
        rest: Noised,
        plan: ScrubPlan | None = None,
        begun: tuple[int, Mapping[str, Edit]] | None = None,
        folder: Path | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take samples of each concept, and of what stays.

        start: weights by parameter name that stand in for the network's own.
        """
        self.denoiser, self.plan = denoiser, plan or ScrubPlan()
        self.kinds = [kind.batches(self.plan.batch) for kind in (*concepts, rest)]
        if self.plan.checked and min(map(len, self.kinds)) < 2:
            raise SpecError(
                f"to check directions takes two batches of {self.plan.batch} samples of either "
                "kind; take more samples, or do not check"
            )
        self.blocks_done, edits = begun or (0, {})
        self.order: list[Block] = []  # of which these are to be done; known once it has begun
        self.edits: dict[str, Edit] = dict(edits)
        self.outputs = Outputs(self.plan.memory, folder)
        self.start = dict(start or {})
        self.passes = 0
        """UNet passes, one sample each; one that computes two blocks of n counts 2 / n.

        One that goes on counts as if it had never stopped, for a diff says what it took.
        """
        self._computed = 0  # blocks, one sample each

    @property
    def weights(self) -> dict[str, Tensor]:
        """Return the scrubbed weights and biases by parameter name, in float32.

        Those that it started from are among them.
        """
        return {**self.start, **self._scrubbed(self.edits)}

    def _weight(self, name: str) -> Tensor:
        """Return a weight as it was before it was scrubbed."""
        if name in self.start:
            return self.start[name]
        return self.denoiser.module.get_parameter(name).detach()

    @torch.inference_mode(False)
    @torch.no_grad()
    @in_float32
    def __iter__(self) -> Iterator[ScrubReport]:
        first = self.kinds[-1][0].batches(1)[0]

        def once() -> None:
            self._show(first, {})

        blocks = self.order = blocks_of(self.denoiser, once)
        replay = Replay(self.denoiser.module, blocks, self.outputs, once)
        # The halves of a kind are told apart where one is checked on the other.
        parts = 2 if self.plan.checked else 1
        batches = [
            (parts * number + parts * i // len(kind), batch)
            for number, kind in enumerate(self.kinds)
            for i, batch in enumerate(kind)
        ]
        begin, total = self.blocks_done, len(blocks) * len(batches)
        samples = sum(len(batch) for _, batch in batches)
        self._computed = samples * sum(_computes(replay, number) for number in range(begin))
        self._count(replay)
        for number in range(begin, len(blocks)):
            block = blocks[number]
            seen = [_empty(block) for _ in range(parts * len(self.kinds))]
            for i, (part, batch) in enumerate(batches):
                whole = number == begin or not replay.possible
                self._measure(replay, number, i, batch, seen[part], whole)
                done = number * len(batches) + i + 1
                yield ScrubReport(done, total, self.passes, self.directions, block.name)
            self._scrub(block, seen)
            self.blocks_done = number + 1
        self.outputs.clear()
        yield ScrubReport(total, total, self.passes, self.directions)

    @property
    def directions(self) -> int:
        """Count the directions that have been taken out of all layers so far."""
        return sum(edit.rank for edit in self.edits.values())

    def _measure(
        self,
        replay: Replay,
        number: int,
        index: int,
        batch: Noised,
        seen: Mapping[str, Moments],
        whole: bool,
    ) -> None:
        """Show a batch to one block; whole: all blocks before it compute, as after a pause."""
        begin = 0 if whole else max(0, number - 1)
        layers = (key for block in replay.blocks[begin:number] for key in block.layers)
        own = self._scrubbed(key for key in layers if key in self.edits)
        replay.upto(
            number,
            index,
            lambda key, x: seen[key].add(x),
            lambda: self._show(batch, own),
            begin,
        )
        self._computed += len(batch) * _computes(replay, number)
        self._count(replay)

    def _count(self, replay: Replay) -> None:
        self.passes = ORDER + round(self._computed / len(replay.blocks))

    def _show(self, batch: Noised, theta: Mapping[str, Tensor]) -> None:
        """Let the network see a batch, with some of its weights scrubbed."""
        dtype, place = compute_dtype(self.denoiser.module), device_of(self.denoiser)
        weights = {name: w.to(place, dtype) for name, w in {**self.start, **theta}.items()}
        with exchanged(self.denoiser.module, weights):
            shown_to(self.denoiser, batch)

    def _scrubbed(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Return the scrubbed weights of some layers by parameter name, in float32."""
        theta = {}
        for key in keys:
            edit = self.edits[key]
            offsets = {key: edit.offset}
            if edit.bias is not None:
                offsets[_bias_of(key)] = edit.bias
            for which, offset in offsets.items():
                name = self.denoiser.parameter_name(which)
                weight = self._weight(name)
                theta[name] = weight.float() + offset.to(weight.device)
        return theta

    def _scrub(self, block: Block, seen: Sequence[Mapping[str, Moments]]) -> None:
        """Scrub the layers of a block, for all passes from now on."""
        for leader in seen[0]:
            alike = [key for key in block.layers if block.alike.get(key, key) == leader]
            for centred in (False, True):
                keys = [key for key in alike if self._centred(key) == centred]
                keys = [key for key in keys if not any(part in key for part in self.plan.spared)]
                if keys:
                    self._take(keys, self._by_kind(leader, seen), centred)

    def _centred(self, key: str) -> bool:
        owner = self.denoiser.parameter_name(key).rpartition(".")[0]
        return self.plan.centred and self.denoiser.module.get_submodule(owner).bias is not None

    def _by_kind(self, leader: str, seen: Sequence[Mapping[str, Moments]]) -> list[list[Moments]]:
        """Return a layer's moments: of each concept, at last of what stays; whole or in halves."""
        parts = len(seen) // len(self.kinds)
        moments = [part[leader] for part in seen]
        return [moments[i : i + parts] for i in range(0, len(moments), parts)]

    def _take(self, keys: Sequence[str], seen: Sequence[list[Moments]], centred: bool) -> None:
        """Scrub layers that see the same: each concept in its turn, from what is left by then."""
        plan, rest = self.plan, Moments.of(seen[-1])
        centre = rest.centre if centred else None
        usual = _about(rest, centre)
        removal = Removal.nothing(len(usual))
        for own in seen[:-1]:
            concept = removal.of(_about(Moments.of(own), centre))
            spectrum = Spectrum.of(concept, removal.of(usual), plan.eps, plan.tau)
            if plan.checked and len(spectrum.lambdas):
                halves = [removal.of(_about(half, centre)) for half in (*own, *seen[-1])]
                spectrum = spectrum.first(_confirmed(halves, plan))
            removal = removal.then(spectrum, plan.soft)
        if not len(removal.lambdas):
            return
        for key in keys:
            weight = self._weight(self.denoiser.parameter_name(key)).cpu()
            harm = float(harms(weight, removal, rest.mean).sum())
            self.edits[key] = edited(weight, removal, harm, centre)


def _computes(replay: Replay, number: int) -> int:
    """Count the blocks that compute in a pass that measures one, what is stored left out."""
    return min(number + 1, 2) if replay.possible else number + 1


def _about(moments: Moments, centre: Tensor | None) -> Tensor:
    return moments.mean if centre is None else moments.around(centre)


def _confirmed(seen: Sequence[Tensor], plan: ScrubPlan) -> int:
    """Count the directions of either half of the pictures that stand out on the other, on average.

    seen: moments of the concept's two halves, of the rest's two.
    """
    counts = [
        confirmed(
            Spectrum.of(seen[i], seen[2 + i], plan.eps, plan.tau),
            seen[1 - i], seen[3 - i], plan.eps, plan.tau,
        )
        for i in (0, 1)
    ]  # fmt: skip
    return -(-sum(counts) // 2)


def _bias_of(key: str) -> str:
    """Name the bias beside a weight."""
    return f"{key.removesuffix('.weight')}.bias"


def _empty(block: Block) -> dict[str, Moments]:
    return {key: Moments() for key in block.layers if key not in block.alike}
