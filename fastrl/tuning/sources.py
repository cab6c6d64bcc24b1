"""The code behind a configuration, whose changes void older measurements."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import gymnasium

from fastrl.config import Config
from fastrl.config.fields import code_of
from fastrl.envs.family import family_of, own_families

_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""An import path, such as gymnasium's registry contains."""
_INSTALLED = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")
)


def sources(config: Config) -> dict[str, str]:
    """Return a digest of each source file, and the version of each package, behind a configuration.

    The files are those of the modules that keys such as ``env.id``, ``env.wrappers`` and
    ``model.class_path`` name, and of all modules that these import, except installed packages. Only
    plug-ins are imported to find them. Files that an environment reads are not included.
    """
    algorithm = config.algorithm
    named = [*_named_by(config.env.id), algorithm.import_path or type(algorithm).__module__]
    named += [path for _, _, paths in code_of(config) for path in paths]
    modules = [path.partition(":")[0] for path in named if not _is_ours(path.partition(":")[0])]
    found = {name: _version(name.partition(".")[0]) for name in modules}
    for file in sorted(_files(modules)):
        found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return {name: what for name, what in found.items() if what}


def _named_by(env_id: str) -> Iterator[str]:
    """Yield the modules that an id names, and the one in which it is registered."""
    *modules, name = env_id.split(":")
    yield from (module for module in modules if module != "vector")
    family = family_of(env_id)
    if family is not None and family not in own_families():
        yield type(family).__module__
    entry_point = getattr(gymnasium.registry.get(name), "entry_point", None)
    if entry_point is not None:
        yield entry_point if isinstance(entry_point, str) else entry_point.__module__


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "fastrl"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""


def _files(modules: list[str]) -> set[Path]:
    """Return the source files of modules and of what they import."""
    left, seen, found = list(modules), set[str](), set[Path]()
    while left:
        name = left.pop()
        if name in seen or _is_ours(name):
            continue
        seen.add(name)
        left += [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        file = _file_of(name)
        if file is not None and not any(file.is_relative_to(place) for place in _INSTALLED):
            found.add(file)
            left += _imported_by(file, name if file.stem == "__init__" else name.rpartition(".")[0])
    return found


def _file_of(name: str) -> Path | None:
    """Return the file of a module, which is not imported; None where it has none."""
    top, *parts = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # modules created at run time have no spec
        spec = None
    for part in parts:
        places = spec and spec.submodule_search_locations
        # By its last name alone: namespace packages would import their parent.
        spec = PathFinder.find_spec(part, places) if places else None
    origin = spec and spec.origin
    if name == "__main__":
        origin = getattr(sys.modules["__main__"], "__file__", None)
    file = Path(origin).resolve() if origin else None
    return file if file is not None and file.is_file() else None


def _imported_by(file: Path, package: str) -> Iterator[str]:
    """Yield the modules that a file imports or names in import paths."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # compiled, or broken
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level]
            base = ".".join([*(above if node.level else ()), *filter(None, [node.module])])
            yield from (name for name in (base,) if name)
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)
        elif isinstance(node, ast.Constant) and _PATH.fullmatch(str(node.value)):
            yield str(node.value).partition(":")[0]
