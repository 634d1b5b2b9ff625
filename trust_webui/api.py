"""Routes under /trust/v1 for programs: docs/start/webui.md describes them.

They are there when the host's own API is (--api or --nowebui), and behind the same --api-auth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from secrets import compare_digest
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import shared

from trust_engine import strict_json
from trust_engine.diff.label import describe
from trust_engine.errors import SpecError, TrustError
from trust_engine.spec import KINDS, UnlearnSpec
from trust_engine.unlearn.effort import EFFORTS, steps_of

from . import always_on, applying, asked_diffs, demo_model, folders, form
from .audit_job import Question, asked_about, audit
from .estimate import expect, watched
from .jobs import ESTIMATE, JOBS, PROGRAM, PROMPTS, Job
from .one_line import one_line
from .prompts_job import list_prompts
from .unlearn_job import Order

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
        ("POST", "/prompts", post_prompts),
        ("POST", "/unlearn", post_unlearn),
        ("POST", "/audit", post_audit),
        ("GET", "/jobs", jobs),
        ("GET", "/jobs/{identity}", job),
        ("POST", "/jobs/{identity}/cancel", cancel),
        ("GET", "/apply", applied),
        ("POST", "/apply", apply),
        ("POST", "/demo", post_demo),
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
        raise HTTPException(422, one_line(str(error))) from error


async def _body(request: Request) -> Any:
    """Read a request's JSON; FastAPI itself would answer a mistake with a list of objects."""
    content = await request.body()
    return _refusing(lambda: parsed(content))


def parsed(content: bytes) -> Any:
    """Read JSON in which no name is given twice; raises SpecError."""
    try:
        return strict_json.parse(content)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"the body cannot be read as JSON ({one_line(error, 120)})") from error


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
        return {"name": name, "error": one_line(str(error))}
    told.pop("provenance")
    return {"name": name, **told}


def post_expect(body: Any = Depends(_body)) -> dict[str, Any]:  # noqa: B008
    """Begin to estimate what a run would take; the body is that of /unlearn."""
    order = _refusing(lambda: read_order(body))
    return _begun(JOBS.start(ESTIMATE, order.spec.name, expect(order), PROGRAM))


def post_prompts(body: Any = Depends(_body)) -> dict[str, Any]:  # noqa: B008
    """Begin to list the prompts that a run would use; the body is that of /unlearn."""
    order = _refusing(lambda: read_order(body))
    return _begun(JOBS.start(PROMPTS, order.spec.name, list_prompts(order), PROGRAM))


def post_unlearn(body: Any = Depends(_body)) -> dict[str, Any]:  # noqa: B008
    """Begin to unlearn: concepts, effort, spec (any field), resolution, pictures, name, preset."""
    order = _refusing(lambda: read_order(body))
    return _begun(JOBS.start("unlearn", order.spec.name, watched(order), PROGRAM))


def post_audit(body: Any = Depends(_body)) -> dict[str, Any]:  # noqa: B008
    """Begin to audit: diff, judge, and optionally concept, level, images, retain, strength."""
    question = _refusing(lambda: read_question(body))
    return _begun(JOBS.start("audit", question.diff, audit(question), PROGRAM))


def _begun(job: Job) -> dict[str, Any]:
    return {"job": job.id}


def jobs() -> list[dict[str, Any]]:
    """List the jobs that are remembered, the oldest first."""
    return [job.to_dict() for job in JOBS.all()]


def job(identity: str) -> dict[str, Any]:
    """Tell where a job stands, and what came of it."""
    return _job(identity).to_dict()


def cancel(identity: str) -> dict[str, Any]:
    """Stop a job: at once while it waits, within one step while it runs."""
    one = _job(identity)
    one.stop()
    return one.to_dict()


def _job(identity: str) -> Job:
    found = JOBS.get(identity)
    if found is None:
        shown = one_line(repr(identity), 60)
        raise HTTPException(404, f"no job {shown}; GET {ROOT}/jobs lists them")
    return found


def applied() -> dict[str, Any]:
    """List the diffs that are on every picture."""
    on = _refusing(always_on.always)
    return {"diffs": [{"name": one.name, "strength": one.strength} for one in on]}


def apply(body: Any = Depends(_body)) -> dict[str, Any]:  # noqa: B008
    """Put diffs on every picture from now on; an empty list takes them off."""

    def work() -> dict[str, Any]:
        _known(body, ("diffs",))
        warnings = always_on.put(asked_diffs.listed(body.get("diffs")))
        return {**applied(), **({"warnings": warnings} if warnings else {})}

    return _refusing(work)


def post_demo() -> dict[str, Any]:
    """Lay the demo model out as a checkpoint of the web UI; choosing it is the host's own route."""
    path = _refusing(demo_model.lay)
    return {"checkpoint": path.name}


def read_order(body: Any) -> Order:
    """Read what /unlearn is sent; raises SpecError."""
    _known(body, ("concepts", "effort", "spec", "resolution", "pictures", "name", "preset"))
    about = {key: body[key] for key in ("resolution", "pictures", "name") if key in body}
    if not all(type(about.get(key, 0)) is int for key in ("resolution", "pictures")):
        raise SpecError("resolution and pictures must be whole numbers")
    if "preset" in body:
        return _of_preset(body, about)
    parts = body.get("concepts")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise SpecError('concepts must be a list such as [{"words": ["gun"]}]')
    settings = body.get("spec", {})
    if not isinstance(settings, dict) or {"concepts", "concept"} & set(settings):
        raise SpecError("spec must be an object of the spec's fields, concepts not among them")
    if "effort" in body:
        if "steps" in settings:
            raise SpecError("effort and the spec's steps say the same; leave one out")
        settings = {"steps": steps_of(_text(body, "effort")), **settings}
    spec = UnlearnSpec.from_json(json.dumps({"concepts": parts, **settings}))
    spec.refuse_unheeded()
    return Order(spec, **about)


def _of_preset(body: Mapping[str, Any], about: Mapping[str, Any]) -> Order:
    """Take a preset's order, with what is asked for beside it instead of its own."""
    both = [key for key in ("concepts", "effort", "spec") if key in body]
    if both:
        raise SpecError(f"the preset says {', '.join(both)}; leave out the one or the other")
    return replace(form.load_preset(_text(body, "preset")).order, **about)


def read_question(body: Any) -> Question:
    """Read what /audit is sent; raises TrustError."""
    _known(body, ("diff", "concept", "judge", "level", "images", "retain", "strength",
                  "resolution", "seed"))  # fmt: skip
    told = dict(body)
    diff, judge = _text(told, "diff"), _text(told, "judge")
    part, concept = told.pop("concept", None), None
    if part is not None:
        if not isinstance(part, dict):
            raise SpecError('concept must be an object such as {"words": ["gun"]}')
        (concept,) = UnlearnSpec.from_json(json.dumps({"concepts": [part]})).concepts
    retain = told.pop("retain", [])
    if not isinstance(retain, list):
        raise SpecError("retain must be a list of texts")
    about = asked_about(diff, concept)
    return Question(**{**told, "diff": diff, "judge": judge, "concept": about,
                       "retain": tuple(retain)})  # fmt: skip


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value.strip():
        raise SpecError(f"{name} must be a text that is not empty")
    return value


def _known(body: Any, names: tuple[str, ...]) -> None:
    if not isinstance(body, Mapping):
        raise SpecError(f"an object with {', '.join(names)} is expected")
    unknown = sorted(map(str, set(body) - set(names)))
    if unknown:
        raise SpecError(f"unknown fields {', '.join(unknown)}; known: {', '.join(names)}")
