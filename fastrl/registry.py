"""The registry of all objects that a configuration may choose by name.

`register` is called by `fastrl.builtin`, by scripts before they train, and by installed
distributions with the entry points ``fastrl.plugins``. They are imported when a name is requested
that is not known yet.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint, distributions
from numbers import Number
from types import ModuleType
from typing import Any

from fastrl import once
from fastrl.arguments import brief, nearest, one_of
from fastrl.errors import USERS_FAILURES, ArgumentError, ConfigError, EnvError, FastrlError, cause
from fastrl.imports import import_object, installed_places

NAMESPACE = "fastrl/"
"""Prefix of the ids of fastrl's compiled environments."""

GROUP = "fastrl.plugins"
"""Group of entry points; each names a module or a function to call."""

KINDS = (
    "algorithm",
    "callback",
    "engine",
    "environments",
    "logger",
    "model",
    "sampler",
    "transform",
)

_LOGGER = logging.getLogger(__name__)
_BUILTIN = "fastrl.builtin"
_PATH = re.compile(r"[\w.]+:[\w.]+")
_PLAIN = (str, bytes, Number, Sequence, Set, Mapping)
"""Types of plain data, which cannot be registered."""


@dataclass(frozen=True)
class Entry:
    """A registered object.

    Attributes:
        kind: One of `KINDS`.
        name: Its name in configurations.
        thing: The object, or its import path ``package.module:Object``.
        source: The distribution or the module that registered it.
        section: The class of its section of the configuration, or the import path of that class;
            None to read ``section_type`` of the object.
        installed: Whether fastrl or an installed plug-in registered it, so that every process
            finds it.
    """

    kind: str
    name: str
    thing: Any
    source: str
    section: Any = None
    installed: bool = False


@dataclass(frozen=True)
class Broken:
    """An installed plug-in that cannot be loaded.

    Attributes:
        name: The name of its entry point.
        source: Its distribution.
        reason: The error, on one line.
    """

    name: str
    source: str
    reason: str


_entries: dict[tuple[str, str], Entry] = {}
_broken: list[Broken] = []
_sources: list[str] = []
"""The distribution whose entry point is being imported, if any."""


def register(
    kind: str,
    name: str,
    thing: Any,
    section: Any = None,
) -> None:
    """Register an object under a name that configurations may use.

    Args:
        kind: One of `KINDS`.
        name: Letters, digits, ``_`` and ``-``.
        thing: The object, or its import path ``package.module:Object``, which is imported when
            the name is first used. The guide says what each kind must be.
        section: The class of an algorithm's section of the configuration, or its import path, so
            that a file can be read without importing the algorithm. By default it is the
            attribute ``section_type`` of the object.

    Raises:
        ConfigError: The kind does not exist, the name is malformed or taken, or the object is
            plain data.
    """
    one_of("kind", kind, KINDS)
    is_path = isinstance(thing, str) and _PATH.fullmatch(thing)
    if thing is None or (isinstance(thing, _PLAIN) and not is_path):
        raise ArgumentError(
            "thing must be an object or its import path, 'package.module:Object', "
            f"got {brief(thing)}"
        )
    if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
        raise ConfigError(f"name must be letters, digits, _ and -, got {brief(name)}")
    if not _sources:
        _load_builtin()
    source = _sources[-1] if _sources else getattr(thing, "__module__", None) or "this program"
    known = _entries.get((kind, name))
    if known is not None and known.thing != thing:
        raise ConfigError(
            f"{kind} '{name}' is registered by {known.source} already; choose another name"
        )
    _entries[kind, name] = known or Entry(kind, name, thing, source, section, bool(_sources))


def entry(kind: str, name: str, key: str = "") -> Entry:
    """Return the entry of a name; import plug-ins if it is not known yet.

    Args:
        kind: One of `KINDS`.
        name: The name.
        key: The key of the configuration, for errors.

    Raises:
        ConfigError: The name is unknown; the error suggests the nearest.
    """
    _load_builtin()
    if (kind, name) not in _entries:
        _load_plugins()
        _warn_of_broken()
    if (kind, name) not in _entries:
        known = names(kind)
        listed = f"; there are {', '.join(known)}" if known else ""
        where = f"{key}: " if key else ""
        raise ConfigError(f"{where}no {kind} '{name}'{nearest(name, known) or listed}")
    return _entries[kind, name]


def find(kind: str, name: str, key: str) -> Any:
    """Return the registered object of a name, imported if necessary.

    Args:
        kind: One of `KINDS`.
        name: The name.
        key: The key of the configuration, for errors.

    Raises:
        ConfigError: The name is unknown, or the object cannot be imported.
    """
    return _imported(entry(kind, name, key).thing, key)


def chosen(kind: str, choice: str, key: str) -> Any:
    """Return the object that a key chooses by a registered name or by ``package.module:Object``.

    Raises:
        ConfigError: The name is unknown, or the object cannot be imported.
    """
    return import_object(choice, key) if ":" in choice else find(kind, choice, key)


def call(thing: Any, where: str, *arguments: Any, **kwargs: Any) -> Any:
    """Call a chosen object; an error of users' code becomes one line.

    Args:
        thing: The result of `find` or `chosen`.
        where: The key and its value, for errors.
        *arguments: Positional arguments of the call.
        **kwargs: Keyword arguments of the call.

    Raises:
        ConfigError: Users' code raised an error that is not fastrl's.
    """
    try:
        return thing(*arguments, **kwargs)
    except FastrlError:
        raise
    except USERS_FAILURES as error:
        if str(getattr(thing, "__module__", "")).partition(".")[0] == "fastrl":
            raise
        raise ConfigError(f"{where} cannot be built: {cause(error)}") from error


def check_arguments(thing: Any, problem: str, /, *arguments: Any, **kwargs: Any) -> None:
    """Check, without a call, that a chosen object takes some arguments.

    Args:
        thing: The result of `find` or `chosen`; one without a known signature passes.
        problem: The beginning of the error.
        *arguments: Positional arguments, or placeholders.
        **kwargs: Keyword arguments.

    Raises:
        ConfigError: It does not take them, or cannot be called.
    """
    try:
        with suppress(ValueError):  # classes and functions in C have no signature
            inspect.signature(thing).bind(*arguments, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{problem}: {error}") from error


def section_of(kind: str, name: str, key: str) -> Any:
    """Return the class of the configuration section of a registered object, or None.

    Raises:
        ConfigError: The name is unknown, or the object cannot be imported.
    """
    found = entry(kind, name, key)
    if found.section is not None:
        return _imported(found.section, key)
    return getattr(_imported(found.thing, key), "section_type", None)


def registered(kind: str) -> list[Entry]:
    """Return the entries of a kind in order of registration, without importing plug-ins."""
    _load_builtin()
    return [entry for entry in _entries.values() if entry.kind == kind]


def unknown_environment(env_id: str) -> EnvError:
    """Return the error about an id that gymnasium does not know; it suggests the nearest."""
    from gymnasium import registry

    hint = nearest(env_id, registry) or "; 'fastrl envs' lists what can be built"
    return EnvError(f"unknown environment '{env_id}'{hint}")


def of_program() -> list[Entry]:
    """Return the entries that this program has registered itself."""
    return [entry for entry in _entries.values() if not entry.installed]


def adopt(entries: Iterable[Entry]) -> None:
    """Add entries of another process, see `of_program`; names that are known here stay."""
    _load_builtin()
    for each in entries:
        _entries.setdefault((each.kind, each.name), each)


def names(kind: str) -> list[str]:
    """Return the names of a kind, sorted."""
    return [each.name for each in entries() if each.kind == kind]


def entries() -> list[Entry]:
    """Import all plug-ins and return all entries, sorted by kind and name."""
    _load_builtin()
    _load_plugins()
    return [each for _, each in sorted(_entries.items())]


def broken() -> list[Broken]:
    """Import all plug-ins and return those that cannot be loaded."""
    _load_plugins()
    return list(_broken)


def plugins() -> list[EntryPoint]:
    """Return the entry points of installed plug-ins by name, without importing them."""
    found: dict[str, EntryPoint] = {}
    for distribution in distributions(path=installed_places()):
        for point in distribution.entry_points.select(group=GROUP):
            found.setdefault(point.name, point)
    return [point for _, point in sorted(found.items())]


@cache
def _load_builtin() -> None:
    _register_from("fastrl", lambda: importlib.import_module(_BUILTIN))


@cache
def _load_plugins() -> None:
    if _sources:  # called by a plug-in that is being loaded
        return
    for point in plugins():
        distribution = point.dist.name if point.dist is not None else point.value
        try:
            _register_from(distribution, partial(_load, point))
        except USERS_FAILURES as error:
            _broken.append(Broken(point.name, distribution, cause(error)))


def _warn_of_broken() -> None:
    """Log broken plug-ins, which must not stop runs that do not need them."""
    for each in _broken:
        if once.is_first(f"broken plug-in {each.name}"):
            _LOGGER.warning(
                "plug-in '%s' of %s cannot be loaded: %s", each.name, each.source, each.reason
            )


def _imported(thing: Any, key: str) -> Any:
    return import_object(thing, key) if isinstance(thing, str) else thing


def plugin_versions() -> dict[str, str]:
    """Return the versions of distributions with plug-ins, without importing them."""
    found = (point.dist for point in plugins())
    return {each.name: each.version for each in found if each is not None}


def _load(point: EntryPoint) -> None:
    found = point.load()
    if not isinstance(found, ModuleType):
        found()


def _register_from(source: str, load: Callable[[], object]) -> None:
    """Import code that registers objects, and record their source."""
    _sources.append(source)
    try:
        load()
    finally:
        _sources.pop()
