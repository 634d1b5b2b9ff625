"""What our browser extension asks the server: a diff file's label, a cached node's chart."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ..trust_engine.diff import label as diff_label
from ..trust_engine.diff import load_diff
from ..trust_engine.diff.file import audit_mismatch
from ..trust_engine.errors import TrustError
from .folders import found
from .run_cache import recalled
from .runs import change
from .wording import said

log = logging.getLogger(__name__)
LABEL, RUN, RUNS = "/trust/label", "/trust/run", "/trust/runs"


def register() -> None:
    """Answer GET /trust/label and /trust/run, and POST /trust/runs, if there is a server."""
    try:
        from aiohttp import web
        from server import PromptServer
    except ImportError:
        return
    routes = getattr(getattr(PromptServer, "instance", None), "routes", None)
    if routes is None:
        return

    @routes.get(LABEL)
    async def label(request: Any) -> Any:
        name = request.rel_url.query.get("name", "")
        loop = asyncio.get_running_loop()
        told = await loop.run_in_executor(None, label_of, name)
        return web.json_response(told)

    @routes.post(RUNS)
    async def kept(request: Any) -> Any:
        asked = await request.json()
        loop = asyncio.get_running_loop()
        told = await loop.run_in_executor(None, change, asked if isinstance(asked, dict) else {})
        return web.json_response(told)

    @routes.get(RUN)
    async def run(request: Any) -> Any:
        asked = request.rel_url.query
        prompt = prompt_of(PromptServer.instance.prompt_queue, asked.get("prompt", ""))
        return web.json_response({"run": recalled(prompt, asked.get("node", ""))})


def prompt_of(queue: Any, number: str) -> dict[str, Any] | None:
    """Find a prompt by its id among those that run or have run; None if there is none."""
    running, _ = queue.get_current_queue()
    past = queue.get_history(prompt_id=number).values()
    items = [*running, *(told["prompt"] for told in past)]
    return next((item[2] for item in items if item[1] == number), None)


def label_of(name: str) -> dict[str, Any]:
    """Describe a listed diff for the Load Diff node; {"error": ...} for one that is no good."""
    try:
        path = found(name)
        diff = load_diff(path)
        size = path.stat().st_size
    except (TrustError, OSError) as error:
        log.info("no label for %r: %s", name, error)
        return {"error": said(error)}
    told = diff_label.describe(diff, size)
    audit = told["notes"].get("audit")
    if audit_mismatch(audit, told["sha256"]) is not None:
        audit = None  # of another diff, or of one that it does not name
    figure = audit.get("ua") if isinstance(audit, dict) else None
    gone = figure.get("value") if isinstance(figure, dict) else None
    return {
        "concepts": told["concepts"],
        "family": told["family"],
        "base": told["base"],
        "audited": bool(audit),
        "gone": gone if isinstance(gone, int | float) else None,
        "label": diff_label.label(path.name, told),
    }
