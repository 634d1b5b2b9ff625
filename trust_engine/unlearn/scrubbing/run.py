"""From noised pictures to edits, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import SpecError
from ...models.contract import Denoiser
from ...models.parameters import exchanged
from ...models.precision import in_float32
from .blocks import Block, blocks_of
from .directions import Edit, Spectrum, edited, harms
from .moments import Moments
from .replay import GIGABYTE, Outputs, Replay
from .samples import Noised, shown_to

ORDER = 2  # passes of one sample, to learn which blocks there are and what they return


@dataclass(frozen=True)
class ScrubPlan:
    """How much is taken out.

    tau: directions with more than this many times the rest's energy go; eps: of the mean variance,
    added to the rest's before it is divided by; soft: shrink to the rest's energy, or remove;
    batch: samples a pass; memory: bytes of main memory that stored outputs may take, the rest of
    them going to files.
    """

    tau: float = 6.0
    eps: float = 0.02
    soft: bool = True
    batch: int = 12
    memory: int = 2 * GIGABYTE

    def __post_init__(self) -> None:
        if self.tau < 1:
            raise SpecError(f"tau is {self.tau:g}; below 1 it takes out what the rest has more of")
        if not 0 < self.eps <= 1:
            raise SpecError(f"eps is {self.eps:g}; it must lie between 0 and 1")


@dataclass(frozen=True)
class ScrubReport:
    """Progress: batches done of all, UNet passes so far, directions taken out so far."""

    done: int
    total: int
    passes: int
    directions: int


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
        concept: Noised,
        rest: Noised,
        plan: ScrubPlan | None = None,
        begun: tuple[int, Mapping[str, Edit]] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.denoiser, self.plan = denoiser, plan or ScrubPlan()
        self.kinds = concept.batches(self.plan.batch), rest.batches(self.plan.batch)
        self.samples = len(concept) + len(rest)
        self.blocks_done, edits = begun or (0, {})
        self.edits: dict[str, Edit] = dict(edits)
        self.outputs = Outputs(self.plan.memory, folder)
        self.passes = 0
        """UNet passes, one sample each; one that computes two blocks of n counts 2 / n."""
        self._computed = 0  # blocks, one sample each

    @property
    def weights(self) -> dict[str, Tensor]:
        """Return the scrubbed weights by parameter name, in float32."""
        found = {}
        for key, edit in self.edits.items():
            name = self.denoiser.parameter_name(key)
            weight = self.denoiser.module.get_parameter(name).detach().float()
            found[name] = weight + edit.offset.to(weight.device)
        return found

    @torch.inference_mode(False)
    @torch.no_grad()
    @in_float32
    def __iter__(self) -> Iterator[ScrubReport]:
        first = self.kinds[1][0].batches(1)[0]

        def once() -> None:
            shown_to(self.denoiser, first)

        blocks = blocks_of(self.denoiser, once)
        replay = Replay(self.denoiser.module, blocks, self.outputs, once)
        batches = [(kind, batch) for kind in (0, 1) for batch in self.kinds[kind]]
        begin, total = self.blocks_done, len(blocks) * len(batches)
        for number in range(begin, len(blocks)):
            block = blocks[number]
            seen = [_empty(block), _empty(block)]
            for i, (kind, batch) in enumerate(batches):
                whole = number == begin or not replay.possible
                self._measure(replay, number, i, batch, seen[kind], whole)
                done = number * len(batches) + i + 1
                yield ScrubReport(done, total, self.passes, self._directions)
            for key in block.layers:
                self._take(key, *(moments[block.alike.get(key, key)].mean for moments in seen))
            self.blocks_done = number + 1
        self.outputs.clear()
        yield ScrubReport(total, total, self.passes, self._directions)

    @property
    def _directions(self) -> int:
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
        theta = self._scrubbed(replay.blocks[begin:number])
        with exchanged(self.denoiser.module, theta):
            replay.upto(
                number,
                index,
                lambda key, x: seen[key].add(x),
                lambda: shown_to(self.denoiser, batch),
                begin,
            )
        self._computed += len(batch) * (number + 1 - begin)
        self.passes = ORDER + round(self._computed / len(replay.blocks))

    def _scrubbed(self, blocks: Sequence[Block]) -> dict[str, Tensor]:
        """Return the scrubbed weights of some blocks, in the network's type."""
        theta = {}
        for key in (key for block in blocks for key in block.layers if key in self.edits):
            name = self.denoiser.parameter_name(key)
            weight = self.denoiser.module.get_parameter(name).detach()
            offset = self.edits[key].offset.to(weight.device)
            theta[name] = (weight.float() + offset).to(weight.dtype)
        return theta

    def _take(self, key: str, concept: Tensor, rest: Tensor) -> None:
        """Scrub one layer, for all passes from now on."""
        name, plan = self.denoiser.parameter_name(key), self.plan
        spectrum = Spectrum.of(concept, rest, plan.eps, plan.tau)
        if not len(spectrum.lambdas):
            return
        weight = self.denoiser.module.get_parameter(name).detach().cpu()
        strengths = spectrum.strengths(plan.soft)
        harm = float(harms(weight, spectrum, strengths, rest).sum())
        self.edits[key] = edited(weight, spectrum, strengths, harm)


def _empty(block: Block) -> dict[str, Moments]:
    return {key: Moments() for key in block.layers if key not in block.alike}
