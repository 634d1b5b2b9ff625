"""Did it work? Forgetting, retention and attacks, side by side with the untouched model."""

from .checks.core import AUDIT_VERSION, Findings, audit, look
from .drawing import to_pixels
from .levels import FULL, LEVELS, QUICK, Budgets, Level, pick_level
from .metrics.intervals import Rate, mean_figure, mean_rate, wilson
from .probes import TARGET_FACTOR, Probe, ShotList, plan
from .report.page import render_page
from .report.terminal import summary
from .run import Audit, AuditStep
from .topic import Topic, World, demo_topic, open_topic

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
