"""The docs as a site: `make docs` builds it from the same files that are read in the repository."""

from __future__ import annotations

project = "TRUST Unlearn"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = project
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Links to the repository's own files lead out of the site; they are checked by the tests.
suppress_warnings = ["myst.xref_missing"]
