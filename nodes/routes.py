"""What our browser extension asks the server: the label of a diff file."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ..trust_engine.diff import load_diff
from ..trust_engine.diff_label import describe, label
from ..trust_engine.errors import TrustError
from .folders import found

log = logging.getLogger(__name__)
PATH = "/trust/label"


def register() -> None:
    """Answer GET /trust/label?name=FILE, if there is a server."""
    try:
        from aiohttp import web
        from server import PromptServer
    except ImportError:
        return
    routes = getattr(getattr(PromptServer, "instance", None), "routes", None)
    if routes is None:
        return

    @routes.get(PATH)
    async def answer(request: Any) -> Any:
        name = request.rel_url.query.get("name", "")
        loop = asyncio.get_running_loop()
        told = await loop.run_in_executor(None, label_of, name)
        return web.json_response(told)


def label_of(name: str) -> dict[str, Any]:
    """Describe a listed diff for the Load Diff node; {"error": ...} for one that is no good."""
    try:
        path = found(name)
        diff = load_diff(path)
        size = path.stat().st_size
    except (TrustError, OSError) as error:
        log.info("no label for %r: %s", name, error)
        return {"error": str(error)}
    told = describe(diff, size)
    audit = told["notes"].get("audit")
    figure = audit.get("ua") if isinstance(audit, dict) else None
    gone = figure.get("value") if isinstance(figure, dict) else None
    return {
        "concepts": told["concepts"],
        "family": told["family"],
        "base": told["base"],
        "audited": bool(audit),
        "gone": gone if isinstance(gone, int | float) else None,
        "label": label(path.name, told),
    }
