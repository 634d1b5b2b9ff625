"""Count imports between the engine's packages: `python tools/imports.py [--at COMMIT] [--list]`.

An arrow is a pair of modules of which one imports the other, however often, at load or within a
function. A name that a package only hands on counts as an arrow to the module that defines it, so
no facade lowers the number. Counted are arrows from one of PACKAGES to another; beside them stand
those to the single modules of the ground floor (errors, spec, ...) and from the doors. `--moved`
names a later commit to which git follows renamed files, for a tree from before they were in
packages.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGINE = "trust_engine"
PACKAGES = ("io", "demo", "models", "prompts", "diff", "unlearn", "audit", "frontend", "cli")
DOORS = ("nodes", "trust_webui")
Sources = dict[str, str]  # text of each file by its path, such as trust_engine/io/files.py
Arrow = tuple[str, str]  # importing and imported module


def read(commit: str | None) -> Sources:
    """Read the Python files of the engine and the doors, as they are here or in a commit."""
    folders = (ENGINE, *DOORS)
    if commit is None:
        paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
        return {p.relative_to(ROOT).as_posix(): p.read_text("utf-8") for p in paths}
    archive = _git("archive", "--format=tar", commit, *folders)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = [m for m in tar.getmembers() if m.name.endswith(".py")]
        return {m.name: tar.extractfile(m).read().decode() for m in files}  # type: ignore[union-attr]


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def renamed(before: str, after: str) -> dict[str, str]:
    """List by their old module names the modules that one of two commits has elsewhere."""
    lines = _git("diff", "-M30%", "--name-status", "--diff-filter=R", before, after).decode()
    pairs = (line.split("\t")[1:] for line in lines.splitlines())
    return {module(old): module(new) for old, new in pairs if old.endswith(".py")}


def module(path: str) -> str:
    """Name the module of a file: trust_engine/io/__init__.py is trust_engine.io."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class Tree:
    """What imports what in a set of sources."""

    def __init__(self, sources: Sources) -> None:
        self.trees = {module(path): ast.parse(text) for path, text in sources.items()}
        self.packages = {module(p) for p in sources if p.endswith("__init__.py")}
        self.handed = {name: dict(self._names(name)) for name in self.packages}

    def arrows(self) -> set[Arrow]:
        """List all arrows but those of packages that only hand names on."""
        found = {
            (importer, self.home(target, name))
            for importer in self.trees
            if importer not in self.packages
            for target, name in self._imported(importer)
        }
        return {(a, b) for a, b in found if a != b and b in self.trees and b not in self.packages}

    def home(self, target: str, name: str) -> str:
        """Find the module that defines a name which is imported from `target`."""
        if f"{target}.{name}" in self.trees:
            return f"{target}.{name}"
        if name in self.handed.get(target, {}):
            return self.home(*self.handed[target][name])
        return target

    def _names(self, package: str) -> Iterator[tuple[str, Arrow]]:
        for target, name in self._imported(package):
            yield name, (target, name)

    def _imported(self, importer: str) -> Iterator[tuple[str, str]]:
        """List (module, name) of each imported name."""
        for node in ast.walk(self.trees[importer]):
            if isinstance(node, ast.ImportFrom):
                target = self._absolute(importer, node.level, node.module or "")
                yield from ((target, alias.name) for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)

    def _absolute(self, importer: str, level: int, target: str) -> str:
        if not level:
            return target
        parts = importer.split(".")
        up = level - 1 if importer in self.packages else level
        return ".".join([*parts[: len(parts) - up], *([target] if target else [])])


def package(name: str) -> str:
    """Name the package of a module: a door's, one of the engine's, or "" for a single module."""
    first, *rest = name.split(".")
    if first != ENGINE:
        return first
    return rest[0] if len(rest) > 1 else ""


def main() -> None:
    """Print the count, a table by package and, if wanted, each arrow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at", metavar="COMMIT", help="count in a commit instead of here")
    parser.add_argument("--moved", metavar="COMMIT", help="name modules as this later commit does")
    parser.add_argument("--list", action="store_true", help="list the arrows")
    args = parser.parse_args()
    names = renamed(args.at, args.moved) if args.moved else {}
    found = {(names.get(a, a), names.get(b, b)) for a, b in Tree(read(args.at)).arrows()}
    between = [(a, b) for a, b in found if package(a) != package(b)]
    counted = sorted((a, b) for a, b in between if {package(a), package(b)} <= set(PACKAGES))
    if args.list:
        print(*(f"{a} -> {b}" for a, b in counted), sep="\n")
    for (a, b), count in sorted(Counter((package(a), package(b)) for a, b in counted).items()):
        print(f"{a:9} -> {b:9} {count:4}")
    ground = sum(package(a) in PACKAGES and not package(b) for a, b in between)
    doors = sum(package(a) in DOORS and package(b) not in DOORS for a, b in between)
    print(
        f"{len(counted)} between packages; beside them {ground} to single modules, {doors} of doors"
    )
    inner = [a for a, b in found if a.startswith(ENGINE) and b.startswith(ENGINE)]
    print(f"{len(inner)} between all modules of the engine")


if __name__ == "__main__":
    main()
