"""Run Python in the project's own environment, made when missing: `python tools/env.py -m pytest`.

The environment is `.venv`. It uses a torch that this Python already has, else installs the one
of constraints.txt. Without arguments the environment is made and nothing is run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "stamp"
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = ("cli", "dev", "docs", "art")
# Without what it requires, for that is pinned and old: ldm's own classes, which the tests train.
ALONE = ("stable-diffusion-sdkit==2.1.5",)
OLDEST_TORCH = (2, 1)

sys.path.insert(0, str(ROOT))
from install import requirements  # noqa: E402


def fingerprint() -> str:
    """Name the state of all that decides what the environment holds."""
    parts = [file.read_bytes() for file in (ROOT / "pyproject.toml", CONSTRAINTS)]
    return hashlib.sha256(b"".join([*parts, *(item.encode() for item in ALONE)])).hexdigest()


def found_torch() -> str | None:
    """Return the version of a torch that this Python can import and we can use, if any."""
    try:
        import torch
    except Exception:  # a broken torch fails in many ways, and is none
        return None
    version = str(torch.__version__)
    return version if tuple(map(int, version.split(".")[:2])) >= OLDEST_TORCH else None


def make(torch: str | None) -> None:
    """Create the empty environment; one that is to use this Python's `torch` sees its packages."""
    options = ["--system-site-packages"] if torch else []
    if find_spec("ensurepip") is None:
        options.append("--without-pip")
    subprocess.run([sys.executable, "-m", "venv", *options, str(VENV)], check=True)
    if torch and sys.prefix != sys.base_prefix:  # itself a venv, which that option looks past
        (site,) = VENV.glob("Lib/site-packages" if os.name == "nt" else "lib/*/site-packages")
        (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")


def fill(torch: str | None) -> None:
    """Install what is listed, holding torch to `torch` or to constraints.txt; then ALONE."""
    limit = CONSTRAINTS
    if torch:
        limit = VENV / "constraints.txt"
        limit.write_text(f"torch=={torch}\n", encoding="utf-8")
    pip = [str(PYTHON), "-m", "pip"]
    if find_spec("ensurepip") is None:
        pip = [sys.executable, "-m", "pip", "--python", str(PYTHON)]
    wanted = requirements(*EXTRAS)
    subprocess.run([*pip, "install", "--quiet", "--constraint", str(limit), *wanted], check=True)
    subprocess.run([*pip, "install", "--quiet", "--no-deps", *ALONE], check=True)


def prepare() -> None:
    """Bring the environment up to date; instant when it is."""
    state = fingerprint()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text(encoding="utf-8") == state:
        return
    start = time.monotonic()
    torch = found_torch()
    source = f"your torch {torch}" if torch else CONSTRAINTS.read_text(encoding="utf-8").strip()
    print(f"Preparing .venv with {source}: the first time takes a few minutes ...", flush=True)
    if not PYTHON.exists():
        make(torch)
    fill(torch)
    STAMP.write_text(state, encoding="utf-8")
    print(f".venv is ready ({time.monotonic() - start:.0f} s).", flush=True)


def main(arguments: list[str]) -> int:
    """Prepare the environment, then run its Python with `arguments`."""
    if sys.version_info < (3, 10):  # noqa: UP036
        print(f"Python 3.10 or later is needed; this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    try:
        prepare()
    except subprocess.CalledProcessError as error:
        step = "create the environment" if "venv" in error.cmd else "install the packages"
        print(f"Could not {step}: see above, then delete {VENV} and try again.", file=sys.stderr)
        return 2
    if not arguments:
        return 0
    command = [str(PYTHON), *arguments]
    if os.name == "posix":
        os.execv(command[0], command)  # so that Ctrl-C reaches the work alone
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
