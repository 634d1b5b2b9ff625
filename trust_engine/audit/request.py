"""What is to be audited, by whom and how hard: asked alike at every door, checked before work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..diff import WeightDiff
from ..distributed import SINGLE, Workers
from ..errors import SpecError
from ..models.load import LoadedModel
from ..models.sampler import SamplerSettings
from ..spec import ConceptSpec
from .judges.catalogue import check_judge, load_aligner, load_judge
from .levels import Level, pick_level
from .metrics.images import ImageMetric, check_eye, load_eye
from .probe_prompts import core_probes
from .run import Audit
from .state import CellStore
from .topic import Topic, demo_topic, open_topic


@dataclass(frozen=True)
class AuditRequest:
    """The concept, who judges, and how hard; raises SpecError or ModelError for what cannot be.

    judge: one of the catalogue; synonyms: other words for the concept (none: its own);
    retain, styles: what should stay and the judge looks for: these three for judges other than the
    demo's, which knows its own; images: an object (None: as the level says); eyes: who else tells
    how far pictures moved, lpips:FILE or clip:PATH.
    """

    concept: ConceptSpec
    judge: str = "demo"
    level: str | Level = "quick"
    images: int | None = None
    seed: int = 0
    synonyms: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    eyes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_judge(self.judge)
        for eye in self.eyes:
            check_eye(eye)
        core_probes(self.topic, self.pictures, self.seed)

    @property
    def effort(self) -> Level:
        """Return the level itself."""
        return pick_level(self.level) if isinstance(self.level, str) else self.level

    @property
    def pictures(self) -> int:
        """Count the pictures of an object."""
        return self.effort.images if self.images is None else self.images

    @property
    def topic(self) -> Topic:
        """Say what the judge is to look for; raises SpecError for what it cannot tell."""
        concept = self.concept
        asked = (concept.words[0], concept.kind, concept.companion, concept.condition)
        if self.judge != "demo":
            synonyms = self.synonyms or concept.words[1:]
            return open_topic(*asked, synonyms, self.retain, self.styles)
        for name, own in (
            ("synonym", self.synonyms), ("retain", self.retain), ("style", self.styles),
        ):  # fmt: skip
            if own:
                raise SpecError(
                    "is named, but the demo's judge looks for all that it knows",
                    field=name,
                    remedy="leave it out, or take {judge clip:PATH} or {judge nudenet}",
                )
        return demo_topic(*asked)

    def loaded_eyes(self) -> list[ImageMetric]:
        """Load those who tell how far pictures moved."""
        return [load_eye(eye) for eye in self.eyes]

    def audit(
        self,
        model: LoadedModel,
        diffs: Sequence[tuple[WeightDiff, float]],
        settings: SamplerSettings | None = None,
        state: Path | CellStore | None = None,
        say: Callable[[str], None] = lambda text: None,
        eyes: Sequence[ImageMetric] | None = None,
        team: Workers = SINGLE,
        device: Any = "cpu",
    ) -> Audit:
        """Set the audit of a model under diffs up; device: the judge's."""
        topic = self.topic
        judge = load_judge(self.judge, topic, device)
        return Audit(
            model,
            judge,
            diffs,
            topic,
            self.effort,
            self.pictures,
            self.seed,
            settings,
            load_aligner(self.judge, judge),
            state,
            self.loaded_eyes() if eyes is None else eyes,
            team,
            say,
        )
