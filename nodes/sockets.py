"""Names of the sockets. They are in users' workflows: never rename one."""

from __future__ import annotations

CONCEPT = "TRUST_CONCEPT"  # tuple[ConceptSpec, ...]
SETTINGS = "TRUST_SETTINGS"  # settings.Settings
NEURONS = "TRUST_NEURONS"  # find.Neurons
DIFF = "TRUST_DIFF"  # WeightDiff
REPORT = "TRUST_REPORT"  # dict: the figures of an audit
