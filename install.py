"""Install what is missing of pyproject.toml's `dependencies`, and nothing else.

AUTOMATIC1111 and Forge run this at every start, ComfyUI-Manager once: quick, silent when
satisfied, and ignorant of host and engine. Never torch: the one of the host is the right one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

PYPROJECT = Path(__file__).with_name("pyproject.toml")
MODULES = {"pillow": "PIL"}  # requirement -> the module it brings, where the names differ
OWNED_BY_HOST = ("torch", "torchvision", "torchaudio")


def requirements(*extras: str) -> list[str]:
    """List the requirements in pyproject.toml: `dependencies`, then those of `extras`."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(item for extra in extras for item in optional[extra])]


def missing(wanted: list[str]) -> list[str]:
    """Return those of `wanted` that this Python cannot import and the host does not own."""
    return [item for item in wanted if not _satisfied(re.split(r"[^\w.-]", item)[0].lower())]


def _satisfied(name: str) -> bool:
    module = MODULES.get(name, name.replace("-", "_"))
    return name in OWNED_BY_HOST or find_spec(module) is not None


def main() -> int:
    """Install what is missing; say so, and say what to do when that fails."""
    names = missing(requirements())
    if not names:
        return 0
    print(f"TRUST Unlearn: installing {', '.join(names)}")
    command = [sys.executable, "-m", "pip", "install", *names]
    if subprocess.run(command).returncode == 0:
        return 0
    print(
        f"TRUST Unlearn: could not install {', '.join(names)} (offline?). Everything else of the "
        f'host works. To try again: "{sys.executable}" -m pip install {" ".join(names)}',
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
