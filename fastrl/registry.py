"""What a configuration may choose by name: fastrl's own things and those of plug-ins.

Everything comes through `register`: what is in `fastrl.builtin`, what a script registers before it
trains, and what installed distributions register in the entry points ``fastrl.plugins``. These are
imported when a name is asked for that is not known yet.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint, distributions
from types import ModuleType
from typing import Any

from fastrl import once
from fastrl.arguments import brief, nearest, one_of
from fastrl.errors import USERS_FAILURES, ConfigError, FastrlError, cause
from fastrl.imports import import_object, installed_places

GROUP = "fastrl.plugins"
"""Entry points of installed distributions; each names a module or a function to call."""

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


@dataclass(frozen=True)
class Entry:
    """A registered thing.

    Attributes:
        kind: One of `KINDS`.
        name: What a configuration calls it.
        thing: The object, or its import path ``package.module:Object``.
        source: The distribution or the module that has registered it.
        section: The class of its section of the configuration, or the import path of that class;
            None to read ``section_type`` of the thing.
    """

    kind: str
    name: str
    thing: Any
    source: str
    section: Any = None


@dataclass(frozen=True)
class Broken:
    """An installed plug-in that cannot be loaded.

    Attributes:
        name: Of its entry point.
        source: Its distribution.
        reason: On one line.
    """

    name: str
    source: str
    reason: str


_entries: dict[tuple[str, str], Entry] = {}
_broken: list[Broken] = []
_sources: list[str] = []
"""The distribution whose entry point is being imported, if one is."""


def register(
    kind: str,
    name: str,
    thing: Any,  # noqa: ANN401
    section: Any = None,  # noqa: ANN401
) -> None:
    """Let configurations choose a thing by name.

    Args:
        kind: One of `KINDS`.
        name: For configurations: letters, digits, ``_`` and ``-``.
        thing: The object, or its import path ``package.module:Object``, which is imported when
            the name is first used. What it must be depends on the kind; see the guide.
        section: The class of an algorithm's section of the configuration, or its import path, so
            that a file can be read without importing the algorithm. By default it is the
            attribute ``section_type`` of the thing.

    Raises:
        ConfigError: The kind does not exist, the name cannot be one, or is another thing's.
    """
    one_of("kind", kind, KINDS)
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
    _entries[kind, name] = known or Entry(kind, name, thing, source, section)


def entry(kind: str, name: str, key: str = "") -> Entry:
    """Return what is registered under a name; imports plug-ins where fastrl has no such thing.

    Args:
        kind: One of `KINDS`.
        name: What the configuration calls it.
        key: The key of the configuration, for errors.

    Raises:
        ConfigError: There is none of this name; names the nearest.
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


def find(kind: str, name: str, key: str) -> Any:  # noqa: ANN401
    """Return a registered thing; import what it needs.

    Args:
        kind: One of `KINDS`.
        name: What the configuration calls it.
        key: The key of the configuration, for errors.

    Raises:
        ConfigError: There is none of this name, or it cannot be imported; names the nearest.
    """
    return _imported(entry(kind, name, key).thing, key)


def chosen(kind: str, choice: str, key: str) -> Any:  # noqa: ANN401
    """Return what a key chooses: by a registered name, or by ``package.module:Object``.

    Raises:
        ConfigError: There is none of this name, or it cannot be imported.
    """
    return import_object(choice, key) if ":" in choice else find(kind, choice, key)


def call(thing: Any, where: str, *arguments: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Return what a chosen thing returns; a failure of code of others is one line.

    Args:
        thing: What `find` or `chosen` has returned.
        where: The key and its value, for errors.
        *arguments: Of the call.
        **kwargs: Of the call.

    Raises:
        ConfigError: The code of others raised something that is no error of fastrl.
    """
    try:
        return thing(*arguments, **kwargs)
    except FastrlError:
        raise
    except USERS_FAILURES as error:
        if str(getattr(thing, "__module__", "")).partition(".")[0] == "fastrl":
            raise
        raise ConfigError(f"{where} cannot be built: {cause(error)}") from error


def section_of(kind: str, name: str, key: str) -> Any:  # noqa: ANN401
    """Return the class of the section that a registered thing has, or None.

    Raises:
        ConfigError: There is none of this name, or it cannot be imported.
    """
    found = entry(kind, name, key)
    if found.section is not None:
        return _imported(found.section, key)
    return getattr(_imported(found.thing, key), "section_type", None)


def registered(kind: str) -> list[Entry]:
    """Return what is registered of a kind so far, in that order; imports no plug-ins."""
    _load_builtin()
    return [entry for entry in _entries.values() if entry.kind == kind]


def names(kind: str) -> list[str]:
    """Return the names of a kind, sorted."""
    return [each.name for each in entries() if each.kind == kind]


def entries() -> list[Entry]:
    """Return everything that is registered, sorted by kind and name; imports all plug-ins."""
    _load_builtin()
    _load_plugins()
    return [each for _, each in sorted(_entries.items())]


def broken() -> list[Broken]:
    """Return the installed plug-ins that cannot be loaded; imports all plug-ins."""
    _load_plugins()
    return list(_broken)


def plugins() -> list[EntryPoint]:
    """Return the entry points of installed plug-ins, sorted by name; imports nothing."""
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
    if _sources:  # a plug-in that is being loaded asks what there is
        return
    for point in plugins():
        distribution = point.dist.name if point.dist is not None else point.value
        try:
            _register_from(distribution, partial(_load, point))
        except USERS_FAILURES as error:
            _broken.append(Broken(point.name, distribution, cause(error)))


def _warn_of_broken() -> None:
    """Log which plug-ins are broken: they must not end runs that do not need them."""
    for each in _broken:
        if once.is_first(f"broken plug-in {each.name}"):
            _LOGGER.warning(
                "plug-in '%s' of %s cannot be loaded: %s", each.name, each.source, each.reason
            )


def _imported(thing: Any, key: str) -> Any:  # noqa: ANN401
    return import_object(thing, key) if isinstance(thing, str) else thing


def plugin_versions() -> dict[str, str]:
    """Return the versions of the distributions that have plug-ins; imports nothing."""
    found = (point.dist for point in plugins())
    return {each.name: each.version for each in found if each is not None}


def _load(point: EntryPoint) -> None:
    found = point.load()
    if not isinstance(found, ModuleType):
        found()


def _register_from(source: str, load: Callable[[], object]) -> None:
    """Import something that registers things, and say of each where it is from."""
    _sources.append(source)
    try:
        load()
    finally:
        _sources.pop()
