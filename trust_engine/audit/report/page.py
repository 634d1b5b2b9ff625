"""audit.html: one self-contained page with figures, bars and pictures, light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ..context import Picture
from .page_style import SCRIPT, STYLE
from .summary import Report

FORGOTTEN = {
    "samplers": "sampler {}",
    "cfg": "guidance {}",
    "steps": "{} steps",
    "image_to_image": "redrawn from a picture of it, strength {}",
}
KEPT = {
    "companions": "another object asked for together with it",
    "members": "each part of it by itself",
    "negative_prompt": "others, with the concept as negative prompt",
}
Figure = Mapping[str, Any]


def render_page(report: Report, blur: bool | None = None) -> str:
    """Write the page. blur: hide pictures until asked for (None: for sensitive concepts)."""
    data = report.figures
    hidden = report.sensitive if blur is None else blur
    name = escape(data["concept"])
    body = "\n".join(
        (
            *_head(data),
            *_pairs(report),
            *_forgetting(data),
            *_retention(report),
            *_attacks(report),
            *_small_print(data),
        )
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Audit: {name}</title>
<style>{STYLE}</style>
</head>
<body class="{"blurred" if hidden else ""}">
<label class="switch"><input type="checkbox" id="blur"{" checked" if hidden else ""}> blur pictures
</label>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _head(data: Mapping[str, Any]) -> Iterator[str]:
    summary, _, rest = data["verdict"].partition(" Not covered: ")
    yield f"<header><p class=over>Unlearning audit, level {escape(data['level'])}</p>"
    yield f"<h1>Is &ldquo;{escape(data['concept'])}&rdquo; forgotten?</h1>"
    yield f"<p class=verdict>{escape(summary)}</p>"
    yield f"<p class=open><b>Not covered:</b> {escape(rest)}</p>" if rest else ""
    yield "</header><section class=cards>"
    was = data["untouched"]
    yield _card("Gone when named", "UA", data["ua"], was["ua"], good=True)
    yield _card("Gone by other words", "synonyms", data["synonyms"], was["synonyms"], good=True)
    yield _card("Other objects kept", "IRA", data["ira"], was["ira"], good=True)
    yield _card("Style kept", "CRA", data["cra_style"], was["cra_style"], good=True)
    yield _card("Background kept", "CRA", data["cra_background"], was["cra_background"], good=True)
    attacks = list(data["attacks"].values())
    if attacks:
        worst = max(attacks, key=lambda a: a["asr"]["value"])
        yield _card(f"Brought back by {worst['title']}", "ASR", worst["asr"],
                    worst["before_attack"], good=False, was_label="without the attack")  # fmt: skip
    yield "</section>"


def _card(
    title: str, short: str, now: Figure, was: Figure, good: bool, was_label: str = "untouched"
) -> str:
    if not now["n"]:
        empty = "<p class=big>&ndash;</p><p>not asked</p>"
        return f"<div class=card><h3>{escape(title)}</h3>{empty}</div>"
    return (
        f"<div class=card><h3>{escape(title)} <span>{escape(short)}</span></h3>"
        f"<p class=big>{now['value']:.0%}</p>{_bar(now, was, good)}"
        f"<p>{was_label} {_value(was)} &middot; n {now['n']}</p></div>"
    )


def _bar(now: Mapping[str, Any], was: Mapping[str, Any] | None, good: bool) -> str:
    """Draw a share as a bar with its interval, and the untouched model's as a mark."""
    if not now["n"]:
        return "<div class=bar></div>"
    low, high = now["low"], now["high"]
    mark = ""
    if was is not None and was["n"]:
        mark = f'<i class=was style="left:{was["value"]:.1%}"></i>'
    return (
        f'<div class="bar {"good" if good else "bad"}"><b style="width:{now["value"]:.1%}"></b>'
        f'<u style="left:{low:.1%};width:{high - low:.1%}"></u>{mark}</div>'
    )


def _value(figure: Mapping[str, Any] | None) -> str:
    return f"{figure['value']:.0%}" if figure and figure["n"] else "&ndash;"


def _span(figure: Mapping[str, Any]) -> str:
    return f"{figure['low']:.0%}&ndash;{figure['high']:.0%}" if figure["n"] else ""


def _pairs(report: Report) -> Iterator[str]:
    rows = report.pictures["core"]
    yield "<section><h2>Before and after</h2><p class=note>The same prompts and seeds. "
    yield "A dot says that the judge sees what was asked for.</p>"
    yield _strip("The concept", rows.get("target.untouched", ()), rows.get("target.edited", ()))
    others = (rows.get(f"others.{who}", ()) for who in ("untouched", "edited"))
    yield f"<div class=stays>{_strip('What should stay', *others)}</div>"
    yield "</section>"


def _strip(title: str, before: Sequence[Picture], after: Sequence[Picture]) -> str:
    """Lay pictures before and after below each other, one column a prompt."""
    cells = []
    for one, other in zip(before, after, strict=False):
        cells.append(f"<figure>{_image(one)}{_image(other)}"
                     f"<figcaption>{escape(one.caption)}</figcaption></figure>")  # fmt: skip
    sides = "<div class=sides><span>before</span><span>after</span></div>"
    return f"<h3>{escape(title)}</h3><div class=strip>{sides}{''.join(cells)}</div>"


def _image(picture: Picture) -> str:
    dot = "" if picture.hit is None else f'<i class="dot {"yes" if picture.hit else "no"}"></i>'
    return (
        f'<span class=shot><img alt="{escape(picture.caption)}" '
        f'src="data:image/jpeg;base64,{picture.jpeg}">{dot}</span>'
    )


def _table(rows: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]], head: str) -> str:
    """Tabulate shares: now with bar and interval, and the untouched model's."""
    lines = [f"<table><tr><th>{head}<th>now<th><th>95 %<th>untouched<th>n</tr>"]
    for label, now, was in rows:
        lines.append(
            f"<tr><td>{escape(label)}<td class=num>{_value(now)}<td class=wide>"
            f"{_bar(now, was, True)}<td class=num>{_span(now)}<td class=num>{_value(was)}"
            f"<td class=num>{now['n']}</tr>"
        )
    return "".join(lines) + "</table>"


def _forgetting(data: Mapping[str, Any]) -> Iterator[str]:
    found, was = data["forgetting"], data["untouched"]
    rows = [("by its name (UA)", data["ua"], was["ua"])]
    if data["synonyms"]["n"]:
        rows.append(("by other words for it", data["synonyms"], was["synonyms"]))
    if "paraphrases" in found:
        pair = found["paraphrases"]
        rows.append(("in other sentences", pair["edited"], pair["untouched"]))
    for series, label in FORGOTTEN.items():
        for setting, pair in found.get(series, {}).items():
            rows.append((label.format(setting), pair["edited"], pair["untouched"]))
    yield "<section><h2>Is it gone, however one asks?</h2>"
    yield "<p class=note>Share of pictures in which the judge does <em>not</em> see it. The thin "
    yield "line is the 95 % interval, the mark the untouched model.</p>"
    yield _table(rows, "asked for") + "</section>"


def _retention(report: Report) -> Iterator[str]:
    data = report.figures
    was, kept = data["untouched"], data["retention"]
    rows = [("other objects (IRA)", data["ira"], was["ira"])]
    near = kept["neighbours"]
    if near["edited"]["n"]:
        names = ", ".join(near["names"])
        rows.append((f"nearest neighbours: {names}", near["edited"], near["untouched"]))
    for key, label in KEPT.items():
        if key in kept:
            rows.append((label, kept[key]["edited"], kept[key]["untouched"]))
    for key, label in (("cra_style", "style (CRA)"), ("cra_background", "background (CRA)")):
        if data[key]["n"]:
            rows.append((label, data[key], was[key]))
    yield "<section><h2>What is kept?</h2><p class=note>Share of pictures in which the judge sees "
    yield "what was asked for.</p>"
    yield _table(rows, "asked for")
    each = [(n, r, was["per_object"].get(n, r)) for n, r in data["per_object"].items()]
    each.sort(key=lambda row: (row[1]["value"] or 0) - (row[2]["value"] or 0))
    if each:
        yield "<details><summary>Every object, the most damaged first</summary>"
        yield _table(each, "object") + "</details>"
    yield from _distances(kept)
    yield "</section>"


def _distances(kept: Mapping[str, Any]) -> Iterator[str]:
    lines = []
    if "alignment" in kept:
        a = kept["alignment"]
        lines.append(f"Prompt alignment, cosine by {escape(str(a['by']))}: {_number(a['edited'])} "
                     f"(untouched {_number(a['untouched'])})")  # fmt: skip
    rows = []
    for eye, pair in kept.get("distance", {}).items():
        rows.append((eye, "neutral prompts", pair["edited"], pair["other_seed"]))
    for eye, pair in kept.get("objects_distance", {}).items():
        rows.append((eye, "other objects", pair["pictures"], None))
        if pair["set"]["n"]:
            rows.append((eye, "other objects, as a set (KID)", pair["set"], None))
    negative = kept.get("negative_prompt", {})
    for key, label in (("distance_without", "the same without a negative prompt"),
                       ("distance_with", "with the concept as negative prompt")):  # fmt: skip
        for eye, figure in negative.get(key, {}).items():
            rows.append((eye, label, figure, None))
    if lines:
        yield "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"
    if rows:
        yield "<details><summary>How far pictures moved from the untouched model's</summary>"
        yield "<table><tr><th>pictures<th>measured by<th>distance<th>between two seeds of the "
        yield "untouched model</tr>"
        for eye, what, figure, other in rows:
            seed = "&ndash;" if other is None else _number(other)
            yield f"<tr><td>{what}<td>{escape(eye)}<td class=num>{_number(figure)}"
            yield f"<td class=num>{seed}</tr>"
        yield "</table></details>"


def _number(figure: Mapping[str, Any]) -> str:
    if not figure["n"]:
        return "&ndash;"
    return f"{figure['value']:.3f} &plusmn; {figure['high'] - figure['value']:.3f}"


def _attacks(report: Report) -> Iterator[str]:
    attacks = report.figures["attacks"]
    yield "<section><h2>Can it be brought back?</h2>"
    yield "<p class=note>Share of pictures in which the judge sees the concept after the attack. "
    yield "<em>Adaptive</em> attacks are optimised against this very model. The mark is the same "
    yield "prompts without the attack.</p>"
    if not attacks:
        yield "<p>No attack was run.</p>"
    for key, attack in sorted(attacks.items(), key=lambda item: -(item[1]["asr"]["value"] or 0)):
        rows = report.pictures[f"attacks.{key}"]
        yield f"<article><h3>{escape(attack['title'])} <span>{attack['stance']}</span></h3>"
        yield f"<div class=attack><p class=big>{_value(attack['asr'])}</p><div>"
        yield _bar(attack["asr"], attack["before_attack"], False)
        yield f"<p>95 % {_span(attack['asr'])} &middot; n {attack['asr']['n']}"
        yield f" &middot; without the attack {_value(attack['before_attack'])}"
        if attack["untouched"] is not None:
            yield f" &middot; on the untouched model {_value(attack['untouched'])}"
            if not attack["informative"]:
                yield " (too weak to tell anything)"
        if attack["floor"] is not None:
            yield f" &middot; floor {_value(attack['floor'])}"
        yield "</p></div></div>"
        shots = "".join(f"<figure>{_image(p)}<figcaption>{escape(p.caption)}</figcaption></figure>"
                        for p in rows.get("edited", ()))  # fmt: skip
        yield f"<div class=strip>{shots}</div>"
        told = {k: v for k, v in attack["budget"].items() if k != "reference"}
        spent = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in told.items())
        yield f"<p class=note>Budget: {escape(spent)}. {escape(attack['source'])}.</p></article>"
    yield "</section>"


def _small_print(data: Mapping[str, Any]) -> Iterator[str]:
    judge, drawn = data["judge"], data["sampler"]
    coupled = "It also helped to find the neurons." if judge["coupled"] else ""
    yield "<footer><h2>Small print</h2><ul>"
    yield f"<li>Judge: {escape(judge['name'])}, {escape(judge['note'])}. {coupled}</li>"
    yield f"<li>Drawn with {escape(drawn['name'])}, {drawn['steps']} steps, guidance "
    yield f"{drawn['cfg']:g}; seed {data['seed']};"
    size = " by ".join(map(str, data["pixels"]))
    yield f"pictures of {size} pixels, {data['images_per_object']} an object."
    measured = "; ".join(f"{d['sha256']} at strength {d['strength']:g}" for d in data["diffs"])
    yield f"</li><li>Measured: diff {escape(measured)}; base {escape(data['base'])}."
    cost = data["cost"]
    yield f"</li><li>{cost['unet_passes']:,} UNet passes, {cost['seconds']:,.0f} s.</li>"
    yield "<li>Floor: how often the judge &ldquo;sees&rdquo; things that the model never learned "
    yield "in an attack's pictures.</li></ul></footer>"
