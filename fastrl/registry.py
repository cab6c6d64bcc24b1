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
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from fastrl import once
from fastrl.arguments import brief, nearest, one_of
from fastrl.errors import USERS_FAILURES, ConfigError, cause
from fastrl.imports import import_object

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
    """

    kind: str
    name: str
    thing: Any
    source: str


_entries: dict[tuple[str, str], Entry] = {}
_sources: list[str] = []
"""The distribution whose entry point is being imported, if one is."""


def register(kind: str, name: str, thing: Any) -> None:  # noqa: ANN401
    """Let configurations choose a thing by name.

    Args:
        kind: One of `KINDS`.
        name: For configurations: letters, digits, ``_`` and ``-``.
        thing: The object, or its import path ``package.module:Object``, which is imported when
            the name is first used. What it must be depends on the kind; see the guide.

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
    _entries[kind, name] = known or Entry(kind, name, thing, source)


def find(kind: str, name: str, key: str) -> Any:  # noqa: ANN401
    """Return a registered thing; import what it needs.

    Args:
        kind: One of `KINDS`.
        name: What the configuration calls it.
        key: The key of the configuration, for errors.

    Raises:
        ConfigError: There is none of this name, or it cannot be imported; names the nearest.
    """
    _load_builtin()
    if (kind, name) not in _entries:
        _load_plugins()
    if (kind, name) not in _entries:
        known = names(kind)
        listed = f"; there are {', '.join(known)}" if known else ""
        raise ConfigError(f"{key}: no {kind} '{name}'{nearest(name, known) or listed}")
    thing = _entries[kind, name].thing
    return import_object(thing, key) if isinstance(thing, str) else thing


def registered(kind: str) -> list[Entry]:
    """Return what is registered of a kind so far, in that order; imports no plug-ins."""
    _load_builtin()
    return [entry for entry in _entries.values() if entry.kind == kind]


def names(kind: str) -> list[str]:
    """Return the names of a kind, sorted."""
    return [entry.name for entry in entries() if entry.kind == kind]


def entries() -> list[Entry]:
    """Return everything that is registered, sorted by kind and name; imports all plug-ins."""
    _load_builtin()
    _load_plugins()
    return [entry for _, entry in sorted(_entries.items())]


def plugins() -> list[EntryPoint]:
    """Return the entry points of installed plug-ins, sorted by name; imports nothing."""
    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


@cache
def _load_builtin() -> None:
    _register_from("fastrl", lambda: importlib.import_module(_BUILTIN))


@cache
def _load_plugins() -> None:
    for point in plugins():
        distribution = point.dist.name if point.dist is not None else point.value
        try:
            _register_from(distribution, partial(_load, point))
        except USERS_FAILURES as error:
            # One that is broken must not end runs that do not need it.
            if once.is_first(f"broken plug-in {point.name}"):
                _LOGGER.warning(
                    "plug-in '%s' of %s cannot be loaded: %s",
                    point.name,
                    distribution,
                    cause(error),
                )


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
