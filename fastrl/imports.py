"""Imports objects that configurations name, and tells how to install optional packages."""

from __future__ import annotations

import importlib
import inspect
import os
import site
import sys
from collections.abc import Collection, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from fastrl.errors import USERS_FAILURES, ConfigError, cause, one_line

PLACES = "the current directory, beside the configuration, and among the installed packages"
DISTRIBUTION = "fastrl-torch"
"""What is installed; on the index, ``fastrl`` is the name of another project."""
_adopted: dict[str, ModuleType] = {}
"""Scripts of other processes by name; see `adopt_script`."""


def import_module(name: str) -> ModuleType:
    """Import a module that a configuration names; the running script is not run again.

    Raises:
        ImportError: It cannot be imported, or belongs to Python's standard library.
    """
    if (script := running_script(name)) is not None:
        return script
    if _is_standard(name):
        raise ImportError(f"'{name}' is part of Python's standard library", name=name)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name and not name.startswith(f"{error.name}."):
            raise
        raise ModuleNotFoundError(f"{error.msg}; looked in {PLACES}", name=error.name) from error


def running_script(name: str) -> ModuleType | None:
    """Return the running script if it could be imported by this name; None otherwise.

    In a process that works for a script elsewhere this is a module with its objects; see
    `adopt_script`.
    """
    if name in _adopted:
        return _adopted[name]
    return _script() if name in {"__main__", *script_names()} else None


def script_names() -> set[str]:
    """Return the names, besides ``__main__``, by which the running script could be imported."""
    script = _script()
    file, spec = getattr(script, "__file__", None), script.__spec__
    return {Path(file).stem if file else "", spec.name if spec else ""} - {"", *sys.modules}


def adopt_script(names: Collection[str], objects: Mapping[str, Any]) -> None:
    """Let import paths into the script of another process name objects in this one.

    Args:
        names: The `script_names` there.
        objects: Objects of that script by name.
    """
    script = ModuleType("__main__")
    vars(script).update(objects)
    _adopted.update(dict.fromkeys(("__main__", *names), script))


def _script() -> ModuleType:
    # A thread that starts a process hides it for a moment.
    script: ModuleType = inspect.unwrap(sys.modules["__main__"])  # type: ignore[arg-type]
    return script


def import_object(path: str, key: str) -> Any:
    """Return the object at ``package.module:name``; the name may be dotted.

    Args:
        path: The import path.
        key: Key of the configuration with the path, for errors.

    Raises:
        ConfigError: It is not an import path, cannot be imported, or is part of the standard
            library.
    """
    where = f"{key}: {one_line(path, None, repr)}"
    module, colon, name = path.partition(":") if isinstance(path, str) else ("", "", "")
    if not (module and colon and name):
        raise ConfigError(f"{where} is not an import path; write 'package.module:name'")
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
    """Return whether a class or function comes from Python's standard library."""
    while isinstance(found, partial):
        found = found.func
    module = getattr(found, "__module__", None)
    return _is_standard(module if isinstance(module, str) else type(found).__module__)


def look_beside(file: Path) -> None:
    """Append the directory of a configuration to the import path."""
    directory = os.path.dirname(os.path.realpath(file))
    if directory not in sys.path:
        sys.path.append(directory)


def installed_places() -> list[str]:
    """Return the directories of installed packages, in search order.

    The current directory and those added by `look_beside` are left out: metadata there, for
    instance in a downloaded folder, are not installed.
    """
    sites = {*site.getsitepackages(), site.getusersitepackages()}
    last = max((at for at, place in enumerate(sys.path) if place in sites), default=len(sys.path))
    here = os.path.realpath(".")
    return [place for place in sys.path[: last + 1] if place and os.path.realpath(place) != here]


def installed_version() -> str | None:
    """Return the version of fastrl; None if it is imported from a checkout."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return None


def how_to_install(extra: str) -> str:
    """Return the command that installs the packages of one of fastrl's extras.

    If fastrl is installed, pip reads them from its metadata, even if the index lacks it.
    """
    if installed_version() is None:
        return f"pip install -e '.[{extra}]' in the checkout of fastrl"
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names
