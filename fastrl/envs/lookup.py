"""Finds the objects that import paths and registered ids name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from types import ModuleType
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec

from fastrl.arguments import brief, nearest, nearest_or_all
from fastrl.envs.family import own_families
from fastrl.errors import EnvError
from fastrl.imports import import_module, is_of_standard_library, running_script
from fastrl.registry import unknown_environment


def attribute(path: str, key: str) -> Any:
    """Return the object at ``package.module:name``.

    Args:
        path: Import path; the name may be dotted.
        key: Key of the configuration, such as ``env.wrappers``.

    Raises:
        EnvError: The path is malformed, the module cannot be imported or lacks the name, or the
            object is Python's own.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise EnvError(f"{key}: '{path}' is not an import path; write 'package.module:name'")
    module = _import(module_name, f"{key}: '{path}'")
    try:
        found = attrgetter(name)(module)
    except AttributeError:
        hint = nearest(name, (known for known in vars(module) if not known.startswith("_")))
        raise EnvError(f"{key}: module '{module_name}' has no '{name}'{hint}") from None
    return _not_of_python(found, f"{key}: '{path}'")


def callee(named: Any, key: str) -> Any:
    """Return the callable that a user names.

    Args:
        named: An import path, a mapping of ``path`` and of its keyword arguments ``kwargs``, or
            the callable itself.
        key: Key of the configuration, such as ``env.wrappers``.

    Raises:
        EnvError: See `attribute`; or it does not take a keyword argument.
    """
    if isinstance(named, str):
        return attribute(named, key)
    if not isinstance(named, Mapping):
        return named
    check_call(named, key)
    path, kwargs = named["path"], named.get("kwargs", {})
    found = callee(path, key)
    for name in kwargs:
        if not takes_argument(found, name, by_any_name=True, unknown=True):
            known = [*inspect.signature(found).parameters][1:]
            hint = nearest_or_all(name, known)
            raise EnvError(f"{key}: '{path}' takes no argument '{name}'{hint}")
    return partial(found, **kwargs)


def check_call(named: Mapping[Any, Any], key: str) -> None:
    """Check that a mapping is one of ``path`` and ``kwargs``.

    Raises:
        EnvError: It has other keys.
    """
    path, kwargs = named.get("path"), named.get("kwargs", {})
    is_called = isinstance(path, str) or callable(path)
    if not (is_called and isinstance(kwargs, Mapping) and named.keys() <= {"path", "kwargs"}):
        raise EnvError(
            f"{key}: a callable with arguments is a mapping of path and kwargs, got "
            + brief(dict(named))
        )


def of_script(path: Any) -> Any:
    """Return the callable of a path into the running script; anything else unchanged.

    Such paths are ``__main__:make``, or ``train:make`` in ``train.py``. Objects of the script
    are sent to workers by value; importing them there would run the script, and start workers,
    again. In a mapping of ``path`` and ``kwargs`` the path is replaced.
    """
    if isinstance(path, Mapping):
        return {**path, "path": of_script(path.get("path"))}
    if not isinstance(path, str):
        return path
    module_name, _, name = path.partition(":")
    found: Any = running_script(module_name)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if callable(found) else path


def factory(path: str, key: str) -> Callable[..., Any] | None:
    """Return the callable at ``module:name``, or None if the module has no such callable.

    Ids of gymnasium have the same form: then the module is imported to register ``name``.

    Raises:
        EnvError: The module cannot be imported, or the callable is Python's own.
    """
    module_name, _, name = path.partition(":")
    found: Any = _import(module_name, f"{key}: '{path}'")
    for part in name.split("."):
        found = getattr(found, part, None)
    return _not_of_python(found, f"{key}: '{path}'") if callable(found) else None


def registered_spec(path: str) -> GymnasiumSpec:
    """Return the registered specification of ``Id``, or of ``module:Id``, which is imported.

    Raises:
        EnvError: The id is unknown; the error names the nearest one, or the missing extra.
    """
    module_name, _, name = path.rpartition(":")
    if module_name:
        _import(module_name, f"'{path}'")
    if name not in gymnasium.registry:
        for family in own_families():
            family.import_ids(name)
    if name not in gymnasium.registry:
        if not module_name:
            raise unknown_environment(name)
        module = importlib.import_module(module_name)
        if hasattr(module, name):
            raise EnvError(f"'{path}' is not an environment: {name} cannot be called")
        known = [each for each in vars(module) if not each.startswith("_")]
        known += _registered_by(module_name.partition(".")[0])
        raise EnvError(
            f"module '{module_name}' neither has nor registers '{name}'{nearest(name, known)}"
        )
    return gymnasium.registry[name]


def takes_argument(
    function: Callable[..., Any], name: str, *, by_any_name: bool = False, unknown: bool = False
) -> bool:
    """Return whether ``function`` has a parameter of this name.

    Args:
        function: The function.
        name: Name of the argument.
        by_any_name: Whether ``**kwargs`` count.
        unknown: The result for functions whose signature cannot be read.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return unknown
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return name in parameters or (by_any_name and takes_any)


def _not_of_python(found: Any, where: str) -> Any:
    if is_of_standard_library(found):
        raise EnvError(
            f"{where} is part of Python's standard library; name a class or function that builds "
            "environments"
        )
    return found


def _import(name: str, where: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
        raise EnvError(f"{where}: '{name}' is not a module; write 'package.module:name'")
    try:
        return import_module(name)
    except ImportError as error:
        for family in own_families():
            if family.package and family.package == error.name:
                return family.imported(where)
        raise EnvError(f"{where}: module '{name}' cannot be imported: {error}") from error


def _registered_by(package: str) -> list[str]:
    """Return the ids of the environments in a package."""
    found = []
    for name, spec in gymnasium.registry.items():
        entry_point = spec.entry_point or spec.vector_entry_point
        if not isinstance(entry_point, str):
            entry_point = getattr(entry_point, "__module__", "")
        if entry_point.replace(":", ".").partition(".")[0] == package:
            found.append(name)
    return found
