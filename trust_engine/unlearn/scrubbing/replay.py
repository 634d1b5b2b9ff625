"""Run a network up to a block without computing the blocks before it.

A block's module whose output is known is given a stand-in `forward` that returns it; what lies
between the blocks, which may be any host's own code, works as ever. While block k is measured,
block k - 1 computes for the second and last time, now with its scrubbed weights, and its output is
stored: in all, each block computes twice a sample. Of the stored outputs only those that something
still reads are kept, the last block's and a UNet's skip connections; others are zeros by then.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...models.recompute import standing_in
from .blocks import Block

GIGABYTE = 2**30


class _Enough(Exception):
    """Raised out of a pass once the layers that are measured have had their turn."""


class Outputs:
    """What blocks returned, by (block, batch): in main memory up to `limit` bytes, else in files.

    folder: where the files go (None: the system's folder for such). Each is gone with its tensor.
    """

    def __init__(self, limit: int = 2 * GIGABYTE, folder: Path | None = None) -> None:
        self.limit, self.folder = limit, folder
        self.held = self.spilled = self.most = 0  # bytes: in memory, in files, the most of both
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._shapes: dict[tuple[int, int], tuple[torch.Size, torch.dtype]] = {}
        self._mapped: dict[tuple[int, int], Path | None] = {}

    def put(self, block: int, batch: int, output: Tensor) -> None:
        """Store an output, in the type that it has."""
        at, size = (block, batch), output.nbytes
        self._shapes[at] = output.shape, output.dtype
        if self.held + size > self.limit:
            self._kept[at] = self._spill(at, output)
            self.spilled += size
        else:
            self._kept[at] = output.detach().to("cpu", copy=True)
            self.held += size
        self.most = max(self.most, self.held + self.spilled)

    def _spill(self, at: tuple[int, int], output: Tensor) -> Tensor:
        handle, name = tempfile.mkstemp(".states", "trust-", self.folder)
        os.close(handle)
        path = Path(name)
        numel = math.prod(output.shape)
        mapped = torch.from_file(name, shared=True, size=numel, dtype=output.dtype)
        mapped.copy_(output.detach().flatten())
        self._mapped[at] = None
        try:
            path.unlink()  # what is mapped stays readable, and nothing is left if we are killed
        except OSError:  # Windows keeps a mapped file
            self._mapped[at] = path
        return mapped.view(output.shape)

    def get(self, block: int, batch: int, like: torch.device) -> Tensor:
        """Return a copy of what was stored, or zeros of its shape if nothing reads it any more."""
        at = (block, batch)
        if at in self._kept:
            return self._kept[at].to(like, copy=True)
        shape, dtype = self._shapes[at]
        return torch.zeros(shape, dtype=dtype, device=like)

    def drop(self, blocks: Container[int], batch: int) -> None:
        """Forget what some blocks returned for a batch, but for its shape."""
        for at in [at for at in self._kept if at[1] == batch and at[0] in blocks]:
            gone = self._kept.pop(at)
            if at not in self._mapped:
                self.held -= gone.nbytes
                continue
            self.spilled -= gone.nbytes
            path = self._mapped.pop(at)
            del gone  # a file that is mapped stays on Windows
            if path is not None:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget everything."""
        for block, batch in list(self._kept):
            self.drop((block,), batch)


class Replay:
    """A network's module, its blocks in order, and what they have returned so far.

    run: makes one pass of a single sample. possible: whether each block is called once, and returns
    nothing but its states; of a network where one is not, every pass computes all blocks.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: Sequence[Block],
        outputs: Outputs,
        run: Callable[[], object],
    ) -> None:
        self.blocks, self.outputs = blocks, outputs
        self.modules = [module.get_submodule(block.path) for block in blocks]
        returned: list[list[object]] = [[] for _ in blocks]
        with contextlib.ExitStack() as stack:
            for found, owner in zip(returned, self.modules, strict=True):
                hook = owner.register_forward_hook(
                    lambda _m, _a, out, found=found: found.append(out)
                )
                stack.callback(hook.remove)
            run()
        self.possible = all(len(found) == 1 and _plain(found[0]) for found in returned)
        self._sizes = [_bytes(found[0]) if self.possible else 0 for found in returned]
        self._wrapped = [bool(found) and isinstance(found[0], tuple) for found in returned]

    def upto(
        self,
        number: int,
        batch: int,
        see: Callable[[str, Tensor], None],
        run: Callable[[], object],
        begin: int,
    ) -> None:
        """Make a pass, `run`, that ends once block `number` has shown its layers' inputs to `see`.

        Blocks before `begin` give back what is stored; from there on they compute, and what those
        before `number` return is stored.
        """
        with contextlib.ExitStack() as stack:
            for i in range(begin):
                stack.enter_context(self._standing_in(i, batch))
            for i in range(begin, number if self.possible else begin):
                stack.callback(self._storing(i, batch).remove)
            stack.enter_context(_watched(self.blocks[number], see))
            with contextlib.suppress(_Enough):
                run()
        read = self._read_after(number)
        self.outputs.drop([i for i in range(number) if i not in read], batch)

    def _read_after(self, number: int) -> set[int]:
        """List the blocks whose outputs are read once block `number` has been measured."""
        # It computes in the next pass and reads the one before it; skips are read by their own.
        return {i for i in range(number) if i == number - 1 or self.blocks[i].used_last >= number}

    @property
    def bytes_a_sample(self) -> int:
        """Return the most that is stored of a sample at one time."""
        return max(
            sum(self._sizes[i] for i in self._read_after(number))
            for number in range(len(self.blocks))
        )

    def _storing(self, i: int, batch: int) -> Any:
        def keep(_module: nn.Module, _args: object, output: Any) -> None:
            (states,) = output if isinstance(output, tuple) else (output,)
            self.outputs.put(i, batch, states)

        return self.modules[i].register_forward_hook(keep)

    def _standing_in(self, i: int, batch: int) -> contextlib.AbstractContextManager[None]:
        module, wrapped = self.modules[i], self._wrapped[i]

        def forward(*args: object, **kwargs: object) -> object:
            given = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
            output = self.outputs.get(i, batch, given.device)
            return (output,) if wrapped else output

        return standing_in(module, forward)


def _bytes(output: Any) -> int:
    (states,) = output if isinstance(output, tuple) else (output,)
    return int(states.nbytes) // len(states)


def _plain(output: object) -> bool:
    """Tell whether a block returned its states, as they are or in a tuple."""
    if isinstance(output, tuple) and len(output) == 1:
        return isinstance(output[0], Tensor)
    return isinstance(output, Tensor)


@contextlib.contextmanager
def _watched(block: Block, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Show what enters a block's layers to `see`, and end the pass when all have been reached."""
    left = set(block.layers)

    def look(key: str, x: Tensor) -> None:
        if key not in block.alike:
            see(key, x)
        left.discard(key)
        if not left:
            raise _Enough

    with contextlib.ExitStack() as stack:
        for key, layer in block.layers.items():
            hook = layer.register_forward_pre_hook(lambda _m, args, key=key: look(key, args[0]))
            stack.callback(hook.remove)
        yield
