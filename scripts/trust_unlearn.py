"""TRUST Unlearn in AUTOMATIC1111, Forge and Forge Neo: the tab, the accordion, settings and routes.

The host has this extension's folder on its path only while it executes this file: import here,
at the top, whatever is needed later. No `from __future__ import annotations` beside a dataclass.
"""

from importlib.util import find_spec

import trust_engine  # noqa: F401

if find_spec("modules") is not None:  # executed elsewhere, the script does nothing
    from trust_webui import which_ui

    if which_ui.kind():
        from trust_webui.callbacks import open_door
        from trust_webui.script import TrustScript  # noqa: F401 - the host finds it here
    else:
        from trust_webui.unsupported_ui import open_door

    open_door()
