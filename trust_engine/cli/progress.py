"""Progress bars for the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from ..unlearn.run import StepReport

FORMAT = "{desc:<12}{percentage:3.0f}% |{bar:30}| {elapsed}<{remaining}{postfix}"


@contextlib.contextmanager
def passes_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar that follows calls of `on_step(done, total)`."""
    from tqdm import tqdm

    with tqdm(desc=name, bar_format=FORMAT) as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_step


def run_with_bar(run: Iterable[StepReport]) -> None:
    """Iterate a run to its end under a bar."""
    with passes_bar("unlearning") as on_step:
        for report in run:
            on_step(report.done, report.total)
