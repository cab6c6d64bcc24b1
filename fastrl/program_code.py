"""The code of this program that a configuration names, for processes that do not run the program.

These are processes on other machines, and the trials of a sweep. Objects of the script, and what
the program has registered with fastrl or gymnasium, travel by value; all other code is imported.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import cloudpickle
import gymnasium
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec

from fastrl import registry
from fastrl.config import Config
from fastrl.errors import USERS_FAILURES, ConfigError, cause
from fastrl.imports import adopt_script, running_script, script_names


def packed(config: Config, thing: Any = None) -> bytes:
    """Return an object, with the code that a configuration names, for `unpacked`.

    Args:
        config: The configuration that the other process uses.
        thing: Any object; pickled by value where it belongs to the script.

    Raises:
        ConfigError: Something cannot be pickled.
    """
    names: list[Any] = list(_texts(config.model_dump(warnings="none")))
    specs = [spec for name in names if (spec := _registered(name)) is not None]
    entries = registry.of_program()
    names += [each for spec in specs for each in (spec.entry_point, spec.vector_entry_point)]
    names += [each for entry in entries for each in (entry.thing, entry.section)]
    objects = dict(found for name in names if (found := _of_script(name)) is not None)
    code = script_names(), objects, entries, specs
    try:
        content = cloudpickle.dumps((code, thing))
    except USERS_FAILURES as error:
        raise ConfigError(
            f"what this program defines cannot be sent to other processes: {cause(error)}; put it "
            "into a module that they import"
        ) from error
    return pickle.dumps(([os.path.abspath(place) for place in sys.path], content))


def unpacked(content: bytes) -> Any:
    """Let this process find the code of another one's `packed`; return the object.

    Raises:
        ConfigError: A module that it needs cannot be imported here.
    """
    places, content = pickle.loads(content)
    sys.path += [each for each in places if each not in sys.path and os.path.exists(each)]
    try:
        (names, objects, entries, specs), thing = cloudpickle.loads(content)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"lacks what the run imports: {error}") from error
    adopt_script(names, objects)
    registry.adopt(entries)
    for spec in specs:
        gymnasium.registry.setdefault(spec.id, spec)
    return thing


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in the values of a configuration."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _registered(name: str) -> GymnasiumSpec | None:
    """Return what gymnasium has under ``Id``, or under ``module:Id``."""
    return gymnasium.registry.get(name) or gymnasium.registry.get(name.partition(":")[2])


def _of_script(path: object) -> tuple[str, Any] | None:
    """Return the name and the object that are meant by a path into the script, or None."""
    module, _, name = path.partition(":") if isinstance(path, str) else ("", "", "")
    script, name = running_script(module) if module else None, name.partition(".")[0]
    return (name, getattr(script, name)) if name and hasattr(script, name) else None
