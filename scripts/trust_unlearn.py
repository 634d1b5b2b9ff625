"""TRUST Unlearn in AUTOMATIC1111 and Forge. There is no tab yet: the extension loads, adds nothing.

The host has this extension's folder on its path only while it executes this file: import here,
at the top, whatever is needed later. No `from __future__ import annotations` beside a dataclass.
"""

import trust_engine  # noqa: F401
