"""What configurations may name by an import path, and where such modules are looked for."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

PLACES = "the current directory, beside the configuration, and among the installed packages"


def import_module(name: str) -> ModuleType:
    """Import a module that a configuration names.

    Raises:
        ImportError: It cannot be imported, or belongs to Python's standard library, which has
            nothing that a configuration could need.
    """
    if _is_standard(name):
        raise ImportError(f"'{name}' is part of Python's standard library", name=name)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name and not name.startswith(f"{error.name}."):
            raise
        raise ModuleNotFoundError(f"{error.msg}; looked in {PLACES}", name=error.name) from error


def is_of_standard_library(found: object) -> bool:
    """Say whether a class or function comes from Python's standard library, by any name."""
    while isinstance(found, partial):
        found = found.func
    module = getattr(found, "__module__", None)
    return _is_standard(module if isinstance(module, str) else type(found).__module__)


def look_beside(file: Path) -> None:
    """Let modules that lie beside a configuration be imported, after those found otherwise."""
    directory = str(file.resolve().parent)
    if directory not in sys.path:
        sys.path.append(directory)


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names
