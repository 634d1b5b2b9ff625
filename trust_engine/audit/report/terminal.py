"""An audit's figures for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

CORE = {
    "ua": "concept gone (UA)",
    "synonyms": "gone by other words",
    "ira": "other objects kept (IRA)",
    "cra_style": "style kept (CRA)",
    "cra_background": "background kept (CRA)",
}


def summary(data: Mapping[str, Any]) -> str:
    """Tabulate the figures and set the verdict below."""
    lines = [f"{'':44s} {'untouched':>10s} {'now':>6s}   95 % interval      n", *_rows(data)]
    if data["attacks"]:
        lines.append("\nattacks: share of pictures in which the concept is back")
    for attack in data["attacks"].values():
        title = f"{attack['title']} ({attack['stance']})"
        lines.append(_row(title, attack["asr"], attack["untouched"]))
    return "\n".join([*lines, "", *textwrap.wrap(data["verdict"], 96)])


def _rows(data: Mapping[str, Any]) -> Iterator[str]:
    for key, label in CORE.items():
        if data[key]["n"]:
            yield _row(label, data[key], data["untouched"][key])
    for key, found in data["forgetting"].items():
        series = {"": found} if "edited" in found else found
        for setting, pair in series.items():
            label = f"gone: {key.replace('_', ' ')} {setting}".strip()
            yield _row(label, pair["edited"], pair["untouched"])
    for key, found in data["retention"].items():
        if "value" in found.get("edited", {}) and key != "alignment":
            yield _row(f"kept: {key.replace('_', ' ')}", found["edited"], found["untouched"])
    worst = sorted(data["per_object"].items(), key=lambda item: item[1]["value"] or 0)[:3]
    if worst:
        yield "weakest others: " + ", ".join(f"{name} {r['value']:.2f}" for name, r in worst)


def _row(label: str, now: Mapping[str, Any], was: Mapping[str, Any] | None) -> str:
    if not now["n"]:
        return f"{label:44s} {'':>10s} {'-':>6s}"
    before = f"{was['value']:10.2f}" if was and was["n"] else f"{'-':>10s}"
    span = f"{now['low']:.2f} to {now['high']:.2f}"
    return f"{label:44s} {before} {now['value']:6.2f}   {span:14s} {now['n']:5d}"
