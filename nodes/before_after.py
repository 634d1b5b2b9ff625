"""Test pictures on the host's MODEL, without and with a diff, decoded by its VAE if it has one."""

from __future__ import annotations

from typing import Any

from ..trust_engine.errors import TrustError
from ..trust_engine.frontend.before_after import BeforeAfter, compared, judge_for
from ..trust_engine.frontend.subjects import Subject, draw, passes, subjects
from ..trust_engine.spec import Sampling
from .audit import HostDecoder
from .host import family_named
from .host_run import Ran
from .lending import Lent, lend
from .progress import Bar, out_of_memory, release
from .wording import said

Models = tuple[Any, Any]


def look(
    lent: Lent, models: Models, clip: Any, vae: Any, ran: Ran, pictures: int, node: str | None
) -> tuple[BeforeAfter | None, list[str]]:
    """Draw and look; what keeps us from it is said and loses no run. An interrupt still ends it.

    models: the MODEL without and with the diff.
    """
    model, run = lent.model, ran.run
    asked = subjects(run.spec, run.prompts, model.vocabulary, model.styles, pictures)
    if not asked:
        return None, []
    try:
        return _looked(lent, models, clip, vae, asked, node, run.spec.sampling), []
    except TrustError as error:
        why = said(error)
    except Exception as error:
        if not out_of_memory(error):
            raise
        why = f"out of memory ({str(error).splitlines()[0]})"
    release()
    return None, [f"No test pictures: {why}."]


def _looked(
    lent: Lent,
    models: Models,
    clip: Any,
    vae: Any,
    asked: tuple[Subject, ...],
    node: str | None,
    sampling: Sampling,
) -> BeforeAfter:
    judge = judge_for(family_named(lent.host.weights) or "", asked) if vae is not None else None
    total, done, drawn = passes(len(asked), sampling), 0, []
    bar = Bar(node, total)

    def on_pass(made: int) -> None:
        nonlocal done
        done += made
        bar.update(done, total)

    size = lent.model.latent_size
    for model in models:
        mine = lend(model, clip, 8 * size[0])
        mine.host.rows = lent.host.rows
        drawn.append(draw(mine.host, mine.encoder, size, asked, on_pass, sampling=sampling))
    decoder = None if vae is None else HostDecoder(vae, models[0])
    return compared(asked, *drawn, judge, decoder, sampling)
