"""Did it work? Forgetting, retention and attacks, side by side with the untouched model.

request        what is asked: concept, judge, level; checked before any work
topic          what the judge must see for a concept, and the world around it
levels         how much is done: quick, full
probe_prompts  the pictures that are drawn: prompts, seeds, what each should show
drawing        drawing them step by step, as generators that yield UNet passes
context        what all parts of an audit share: both models, judge, topic
run            the audit as a run: iterate over it, then read its report
state          finished parts on disk, to go on from
token_space    a text encoder below its words, for attacks that learn tokens
checks         what is measured without attacking
attacks        attempts to bring the concept back
judges         who says what a picture shows
metrics        distances between pictures, and intervals
report         what an audit says: JSON, words, page, terminal
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import handed_on

__all__ = [
    "AUDIT_VERSION",
    "FULL",
    "LEVELS",
    "QUICK",
    "TARGET_FACTOR",
    "Audit",
    "AuditStep",
    "Budgets",
    "Findings",
    "Level",
    "Probe",
    "Rate",
    "ShotList",
    "Topic",
    "World",
    "audit",
    "demo_topic",
    "look",
    "mean_figure",
    "mean_rate",
    "open_topic",
    "pick_level",
    "plan",
    "render_page",
    "summary",
    "to_pixels",
    "wilson",
]

if TYPE_CHECKING:
    from .checks.core import AUDIT_VERSION, Findings, audit, look
    from .drawing import to_pixels
    from .levels import FULL, LEVELS, QUICK, Budgets, Level, pick_level
    from .metrics.intervals import Rate, mean_figure, mean_rate, wilson
    from .probe_prompts import TARGET_FACTOR, Probe, ShotList, plan
    from .report.page import render_page
    from .report.terminal import summary
    from .run import Audit, AuditStep
    from .topic import Topic, World, demo_topic, open_topic

_HOME = {
    "AUDIT_VERSION": "checks.core",
    "FULL": "levels",
    "LEVELS": "levels",
    "QUICK": "levels",
    "TARGET_FACTOR": "probe_prompts",
    "Audit": "run",
    "AuditStep": "run",
    "Budgets": "levels",
    "Findings": "checks.core",
    "Level": "levels",
    "Probe": "probe_prompts",
    "Rate": "metrics.intervals",
    "ShotList": "probe_prompts",
    "Topic": "topic",
    "World": "topic",
    "audit": "checks.core",
    "demo_topic": "topic",
    "look": "checks.core",
    "mean_figure": "metrics.intervals",
    "mean_rate": "metrics.intervals",
    "open_topic": "topic",
    "pick_level": "levels",
    "plan": "probe_prompts",
    "render_page": "report.page",
    "summary": "report.terminal",
    "to_pixels": "drawing",
    "wilson": "metrics.intervals",
}

__getattr__ = handed_on(__name__, _HOME)
