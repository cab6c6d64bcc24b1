"""The code behind an environment and a policy; what was measured with older code is void."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import gymnasium

from fastrl.config import Config
from fastrl.config.fields import code_of
from fastrl.envs.family import family_of, own_families

_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""How import paths are written, such as those that gymnasium's registry is given."""
_INSTALLED = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")
)


def sources(config: Config) -> dict[str, str]:
    """Return a digest of each source file, and the version of each package, behind a configuration.

    Source files are those of the modules that keys such as ``env.id``, ``env.wrappers`` and
    ``model.class_path`` name, and of all that these import, as far as they are not installed
    packages. Nothing but plug-ins is imported to find them. Files that an environment reads are
    not among them.
    """
    section = config.algorithm
    named = [*_named_by(config.env.id), section.import_path or type(section).__module__]
    named += [path for _, _, paths in code_of(config) for path in paths]
    modules = [path.partition(":")[0] for path in named]
    modules = [name for name in modules if name.partition(".")[0] != "fastrl"]
    found = {name: _version(name.partition(".")[0]) for name in modules}
    for file in _files(modules):
        found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return {name: what for name, what in found.items() if what}


def _named_by(env_id: str) -> Iterator[str]:
    """Yield the modules that an id names, and where it is registered the one that is its code."""
    *modules, name = env_id.split(":")
    yield from (module for module in modules if module != "vector")
    family = family_of(env_id)
    if family is not None and family not in own_families():
        yield type(family).__module__
    registered = gymnasium.registry.get(name)
    entry_point = getattr(registered, "entry_point", None)
    if entry_point is not None:
        yield entry_point if isinstance(entry_point, str) else entry_point.__module__


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""


def _files(modules: Iterable[str]) -> list[Path]:
    """Return the source files of modules and of what they import, in order of their names."""
    left, seen, found = list(modules), set[str](), set[Path]()
    while left:
        name = left.pop()
        if name in seen or name.partition(".")[0] == "fastrl":
            continue
        seen.add(name)
        left += [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        file = _file_of(name)
        if file is None or any(file.is_relative_to(place) for place in _INSTALLED):
            continue
        found.add(file)
        is_package = file.stem == "__init__"
        left += _imported_by(file, name if is_package else name.rpartition(".")[0])
    return sorted(found)


def _file_of(name: str) -> Path | None:
    """Return the file of a module, which is not imported; None where it has none."""
    top, *parts = name.split(".")
    if name == "__main__":
        origin, places = getattr(sys.modules["__main__"], "__file__", None), []
    else:
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):  # modules created at run time have no spec
            return None
        origin = None if spec is None else spec.origin
        places = list((spec and spec.submodule_search_locations) or ())
    for part in parts:
        files = [Path(place, *each) for place in places for each in _places_of(part)]
        origin = next((str(file) for file in files if file.is_file()), None)
        places = [str(Path(place, part)) for place in places]
    file = Path(origin).resolve() if origin else None
    return file if file is not None and file.is_file() else None


def _places_of(part: str) -> tuple[tuple[str, ...], ...]:
    return (part, "__init__.py"), (f"{part}.py",)


def _imported_by(file: Path, package: str) -> Iterator[str]:
    """Yield the names of modules that a file imports, or names in a text as import paths are."""
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
