"""What configurations may name by an import path, and where such modules are looked for."""

from __future__ import annotations

import importlib
import os
import site
import sys
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from fastrl.errors import USERS_FAILURES, ConfigError, cause

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


def import_object(path: str, key: str) -> Any:  # noqa: ANN401
    """Return the object at ``package.module:name``; the name may be dotted.

    Args:
        path: The import path.
        key: The key of the configuration that names it, for errors.

    Raises:
        ConfigError: It is no import path, cannot be imported, or is Python's own.
    """
    where = f"{key}: '{path}'"
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ConfigError(f"{where} is no import path; write 'package.module:name'")
    try:
        found = attrgetter(name)(import_module(module))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where} cannot be imported: {error}") from error
    except USERS_FAILURES as error:
        raise ConfigError(f"{where} cannot be imported: {cause(error)}") from error
    if is_of_standard_library(found):
        raise ConfigError(f"{where} cannot be imported: it is part of Python's standard library")
    return found


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


def installed_places() -> list[str]:
    """Return where installed packages lie, in the order of the search.

    Neither the current directory is among them nor what `look_beside` has added: metadata that lie
    there by chance, such as in a downloaded folder, install nothing.
    """
    sites = {*site.getsitepackages(), site.getusersitepackages()}
    last = max((at for at, place in enumerate(sys.path) if place in sites), default=len(sys.path))
    here = os.path.realpath(".")
    return [place for place in sys.path[: last + 1] if place and os.path.realpath(place) != here]


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names
