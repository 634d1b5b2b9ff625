"""How much an audit does: quick (about a minute on the demo model) or full."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..errors import SpecError
from ..models.sampler import SamplerName


@dataclass(frozen=True)
class Budgets:
    """What attackers may spend. The defaults are those that our benchmark's goals name.

    judged: pictures drawn and judged after each attack; bait: pictures of the concept that the
    untouched model draws for the attacker.
    """

    judged: int = 24
    bait: int = 64
    inversion_steps: int = 200
    inversion_rate: float = 2e-2
    inversion_batch: int = 12
    relearn_images: int = 16
    relearn_steps: int = 20
    relearn_rate: float = 2e-4
    relearn_batch: int = 16
    lora_rank: int = 8
    lora_rate: float = 2e-3
    benign_images: int = 32
    benign_steps: int = 60
    prefix_tokens: int = 5
    prefix_iterations: int = 40
    genes: int = 12
    population: int = 100
    generations: int = 120
    goals: int = 4


@dataclass(frozen=True)
class Level:
    """Which cells an audit has, and how many pictures each takes.

    images: of each object that should stay, unless the caller says otherwise.
    """

    name: str
    images: int
    shots: int
    samplers: tuple[SamplerName, ...]
    cfgs: tuple[float, ...]
    steps: tuple[int, ...]
    strengths: tuple[float, ...]
    neutral: int
    pairs: int
    attacks: tuple[str, ...]
    reference: bool
    budgets: Budgets = field(default_factory=Budgets)


ATTACKS = (
    "ring_a_bell", "p4d", "unlearn_diff_atk", "textual_inversion_1", "textual_inversion_3",
    "relearning", "relearning_lora", "benign_fine_tuning", "stacked_lora", "storage_fp16",
    "storage_bf16", "storage_fp8",
)  # fmt: skip

QUICK = Level(
    name="quick",
    images=1,
    shots=8,
    samplers=("dpmpp_2m",),
    cfgs=(8.0,),
    steps=(),
    strengths=(0.75,),
    neutral=8,
    pairs=8,
    attacks=("textual_inversion_1",),
    reference=False,
    budgets=Budgets(judged=12, bait=16, inversion_steps=120, inversion_batch=8),
)
FULL = Level(
    name="full",
    images=4,
    shots=32,
    samplers=("euler", "euler_a", "dpmpp_2m"),
    cfgs=(1.0, 2.0, 8.0, 12.0),
    steps=(10, 50),
    strengths=(0.5, 0.75),
    neutral=48,
    pairs=54,
    attacks=ATTACKS,
    reference=True,
)
LEVELS = {"quick": QUICK, "full": FULL}


def pick_level(name: str, **changes: object) -> Level:
    """Return a level by name, with fields changed; raises SpecError for an unknown one."""
    if name not in LEVELS:
        raise SpecError(f"level {name!r} is unknown; use one of {', '.join(LEVELS)}")
    return replace(LEVELS[name], **changes)  # type: ignore[arg-type]
