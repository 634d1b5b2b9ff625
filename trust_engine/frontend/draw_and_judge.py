"""Draw a loaded model's test pictures without and with a diff, and have them looked at."""

from __future__ import annotations

from collections.abc import Callable

from ..diff import WeightDiff, applied
from ..models.load import LoadedModel
from ..spec import Sampling
from ..unlearn.run import Unlearning
from .before_after import BeforeAfter, compared, judge_for
from .subjects import COUNT, Subject, draw, passes, subjects


def look(
    model: LoadedModel,
    run: Unlearning,
    diff: WeightDiff,
    count: int = COUNT,
    judge: str = "auto",
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> BeforeAfter | None:
    """Draw and judge `count` test pictures without and with a run's diff; None when count is 0.

    judge: auto, none, or one of the catalogue; on_step: called with (done, total) UNet passes.
    """
    asked = subjects(run.spec, run.prompts, model.vocabulary, model.styles, count)
    how = run.spec.sampling
    return look_at(model, diff, asked, judge, on_step, how) if asked else None


def look_at(
    model: LoadedModel,
    diff: WeightDiff,
    asked: tuple[Subject, ...],
    judge: str = "auto",
    on_step: Callable[[int, int], None] = lambda done, total: None,
    sampling: Sampling = "guided",
) -> BeforeAfter:
    """Do the same for subjects of one's own."""
    eye = judge_for(model.family, asked, judge, model.device)
    total, done = passes(len(asked), sampling), 0

    def on_pass(made: int) -> None:
        nonlocal done
        done += made
        on_step(done, total)

    encoder, size = model.encoder, model.latent_size
    at_once = max(1, model.batch // 2)
    before = draw(model.denoiser, encoder, size, asked, on_pass, at_once, sampling)
    with applied(model.denoiser, [(diff, 1.0)]):
        after = draw(model.denoiser, encoder, size, asked, on_pass, at_once, sampling)
    return compared(asked, before, after, eye, model.decode if model.draws else None, sampling)
