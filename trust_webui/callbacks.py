"""What the script registers with the host, and what "Reload UI" undoes."""

from __future__ import annotations

from typing import Any

from modules import paths_internal, script_callbacks

from trust_engine.frontend import pictures

from . import always_on, api, demo_model, host, redraw_guard, settings, tab
from .jobs import JOBS


def open_door() -> None:
    """Register tab, settings and routes; the host forgets them itself when it reloads."""
    current = host.current()
    current.begin()
    demo_model.begin()
    redraw_guard.install()
    script_callbacks.on_model_loaded(demo_model.loaded)
    _lend_font()
    script_callbacks.on_ui_settings(settings.add)
    script_callbacks.on_ui_tabs(tab.build)
    script_callbacks.on_app_started(_started)
    script_callbacks.on_script_unloaded(close_door)


def _started(demo: Any, app: Any) -> None:
    """Add the routes, and say what is on every picture: the host has read its settings by now."""
    api.add(demo, app)
    always_on.report()


def close_door() -> None:
    """Stop what runs, take diffs off, and take back what was put into the host."""
    JOBS.stop_all()
    redraw_guard.uninstall()
    current = host.current()
    current.clear()
    current.end()


def _lend_font() -> None:
    """Let charts be written in the font that both hosts bring, for both have an old Pillow."""
    file = getattr(paths_internal, "roboto_ttf_file", None)
    if file and file not in pictures.OLD_FONTS:
        pictures.OLD_FONTS.insert(0, file)
