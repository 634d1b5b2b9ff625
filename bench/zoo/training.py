"""What every training of the zoo shares: a run that stops and resumes, also from an archive."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from bench.world.pace import Pace
from bench.world.training import Stage

RUNS = Path("runs/zoo")
"""Where trainings keep their state; what is lost with it is made up from the archives."""


class Run(Stage):
    """A stage below runs/zoo; `start` gives averaged weights and their step when there is none."""

    def __init__(
        self,
        name: str,
        modules: dict[str, nn.Module],
        pace: Pace,
        start: tuple[dict[str, Tensor], int] | None = None,
    ) -> None:
        super().__init__(name, modules, pace, RUNS)
        if self.step == 0 and start is not None:
            weights, self.step = start
            self._start(weights)
            self.average = {k: v.clone().float() for k, v in self.module.state_dict().items()}
            self.log(started_from_archive=self.step)
            self.warm = self.step

    def _start(self, weights: dict[str, Tensor]) -> None:
        """Load the first module's weights; those that are not trained may be left out."""
        (name, *_) = self.module.keys()
        module = self.module[name]
        found = module.load_state_dict(weights, strict=False)
        trained = {key for key, weight in module.named_parameters() if weight.requires_grad}
        lost = [*found.unexpected_keys, *(trained & set(found.missing_keys))]
        if lost:
            raise ValueError(
                f"weights to go on from do not fit: {len(lost)} names, first {lost[0]}"
            )
