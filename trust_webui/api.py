"""Routes under /trust/v1 for programs: docs/webui.md describes them.

They are there when the host's own API is (--api or --nowebui), and behind the same --api-auth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from secrets import compare_digest
from typing import Any

from fastapi import Body, Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import shared

from trust_engine.diff.label import describe
from trust_engine.errors import SpecError, TrustError
from trust_engine.spec import KINDS, UnlearnSpec
from trust_engine.unlearn.effort import EFFORTS, steps_of

from . import applying, folders, form
from .auditing import LEVELS, Question, audit
from .expecting import expect, watched
from .jobs import ESTIMATE, JOBS, Job
from .work import Order

ROOT = "/trust/v1"


def add(_demo: Any, app: FastAPI) -> None:
    """Add the routes to the host's server, if it has an API."""
    options = shared.cmd_opts
    if not (getattr(options, "api", False) or getattr(options, "nowebui", False)):
        return
    guard = [Depends(_authorised)] if options.api_auth else []
    routes: tuple[tuple[str, str, Callable[..., Any]], ...] = (
        ("GET", "/concepts", concepts),
        ("GET", "/diffs", diffs),
        ("POST", "/expect", post_expect),
        ("POST", "/unlearn", post_unlearn),
        ("POST", "/audit", post_audit),
        ("GET", "/jobs", jobs),
        ("GET", "/jobs/{identity}", job),
        ("POST", "/jobs/{identity}/cancel", cancel),
        ("GET", "/apply", applied),
        ("POST", "/apply", apply),
    )
    for method, path, endpoint in routes:
        app.add_api_route(ROOT + path, endpoint, methods=[method], dependencies=guard)


def _authorised(told: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008
    """Ask for one of --api-auth's names and passwords, as the host's own routes do."""
    pairs = [pair.strip().partition(":") for pair in shared.cmd_opts.api_auth.split(",")]
    given = (told.username.encode(), told.password.encode())
    matches = [
        compare_digest(name.encode(), given[0]) & compare_digest(password.encode(), given[1])
        for name, _, password in pairs
    ]
    if not any(matches):
        raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})


def _refusing(work: Callable[[], Any]) -> Any:
    """Turn what the user can mend into an answer of one line."""
    try:
        return work()
    except TrustError as error:
        raise HTTPException(422, " ".join(str(error).split())) from error


def concepts() -> dict[str, Any]:
    """List kinds and efforts, presets, and the concepts that diffs in the folder forget."""
    known: list[str] = []
    for told in diffs():
        known += [name for name in told.get("concepts", []) if name not in known]
    return {"kinds": list(KINDS), "efforts": list(EFFORTS), "presets": form.presets(),
            "forgotten": known}  # fmt: skip


def diffs() -> list[dict[str, Any]]:
    """List the diffs with what their labels say; a file that is damaged with its error."""
    return [_told(name) for name in folders.listed()]


def _told(name: str) -> dict[str, Any]:
    try:
        diff, _ = applying.load(name)
        told = describe(diff, folders.found(name).stat().st_size)
    except TrustError as error:
        return {"name": name, "error": " ".join(str(error).split())}
    told.pop("provenance")
    return {"name": name, **told}


def post_expect(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
    """Begin to estimate what a run would take; the body is that of /unlearn."""
    order = _refusing(lambda: read_order(body))
    return _begun(JOBS.start(ESTIMATE, order.spec.name, expect(order)))


def post_unlearn(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
    """Begin to unlearn: concepts, effort, spec (any field), resolution, pictures, name, preset."""
    order = _refusing(lambda: read_order(body))
    return _begun(JOBS.start("unlearn", order.spec.name, watched(order)))


def post_audit(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
    """Begin to audit: diff, concept, judge, and optionally level, images, retain, strength."""
    question = _refusing(lambda: read_question(body))
    return _begun(JOBS.start("audit", question.diff, audit(question)))


def _begun(job: Job) -> dict[str, Any]:
    return {"job": job.id}


def jobs() -> list[dict[str, Any]]:
    """List the jobs that are remembered, the oldest first."""
    return [job.to_dict() for job in JOBS.all()]


def job(identity: str) -> dict[str, Any]:
    """Tell where a job stands, and what came of it."""
    return _job(identity).to_dict()


def cancel(identity: str) -> dict[str, Any]:
    """Ask a job to stop; it does within one step."""
    one = _job(identity)
    one.stop()
    return one.to_dict()


def _job(identity: str) -> Job:
    found = JOBS.get(identity)
    if found is None:
        raise HTTPException(404, f"no job {identity!r}; GET {ROOT}/jobs lists them")
    return found


def applied() -> dict[str, Any]:
    """List the diffs that are on every picture."""
    wanted = _refusing(applying.always)
    return {"diffs": [{"name": one.name, "strength": one.strength} for one in wanted]}


def apply(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
    """Put diffs on every picture from now on; an empty list takes them off."""

    def work() -> dict[str, Any]:
        _known(body, ("diffs",))
        entries = body.get("diffs")
        if not isinstance(entries, list):
            raise SpecError('diffs must be a list of {"name": ..., "strength": ...}')
        values: list[Any] = []
        for entry in entries:
            _known(entry, ("name", "strength"))
            values += [str(entry.get("name", "")), entry.get("strength", 1.0)]
        wanted = applying.asked(values)
        hashes = [applying.load(one.name)[1] for one in wanted]
        exact = [
            applying.Wanted(one.name, one.strength, sha)
            for one, sha in zip(wanted, hashes, strict=True)
        ]
        shared.opts.set("trust_always", applying.written(exact), run_callbacks=False)
        return applied()

    return _refusing(work)


def read_order(body: Mapping[str, Any]) -> Order:
    """Read what /unlearn is sent; raises SpecError."""
    _known(body, ("concepts", "effort", "spec", "resolution", "pictures", "name", "preset"))
    about = {key: body[key] for key in ("resolution", "pictures", "name") if key in body}
    if not all(type(about.get(key, 0)) is int for key in ("resolution", "pictures")):
        raise SpecError("resolution and pictures must be whole numbers")
    if not isinstance(about.get("name", ""), str):
        raise SpecError("name must be a text")
    if "preset" in body:
        given = form.load_preset(str(body["preset"])).order
        return Order(given.spec, **{"resolution": given.resolution, **about})
    parts = body.get("concepts")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise SpecError('concepts must be a list such as [{"words": ["gun"]}]')
    settings = body.get("spec", {})
    if not isinstance(settings, dict) or "concepts" in settings:
        raise SpecError("spec must be an object of the spec's fields, concepts not among them")
    if "effort" in body:
        settings = {"steps": steps_of(str(body["effort"])), **settings}
    spec = UnlearnSpec.from_json(json.dumps({"concepts": parts, **settings}))
    return Order(spec, **about)


def read_question(body: Mapping[str, Any]) -> Question:
    """Read what /audit is sent; raises SpecError."""
    _known(body, ("diff", "concept", "judge", "level", "images", "retain", "strength",
                  "resolution", "seed"))  # fmt: skip
    told = dict(body)
    part = told.pop("concept", None)
    if not isinstance(part, dict):
        raise SpecError('concept must be an object such as {"words": ["gun"]}')
    (concept,) = UnlearnSpec.from_json(json.dumps({"concepts": [part]})).concepts
    if not all(isinstance(told.get(key), str) for key in ("diff", "judge")):
        raise SpecError(f"diff and judge must be texts; levels are {', '.join(LEVELS)}")
    retain = told.pop("retain", [])
    if not isinstance(retain, list):
        raise SpecError("retain must be a list of texts")
    return Question(concept=concept, retain=tuple(map(str, retain)), **told)


def _known(body: Any, names: tuple[str, ...]) -> None:
    if not isinstance(body, Mapping):
        raise SpecError(f"an object with {', '.join(names)} is expected")
    unknown = sorted(set(body) - set(names))
    if unknown:
        raise SpecError(f"unknown fields {', '.join(unknown)}; known: {', '.join(names)}")
