"""Checks of the arguments of robots, and of the results of custom robots' functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields
from numbers import Real
from typing import Any

import numpy as np

from fastrl.arguments import brief, is_whole, nearest
from fastrl.errors import EnvError

_NOT_NEGATIVE = frozenset({"reset_noise_scale"})


@dataclass(frozen=True)
class Parameters:
    """Keyword arguments of an environment: none; subclass it to add some."""


def parse(name: str, params: type[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the keyword arguments as an instance of ``params``.

    Raises:
        EnvError: One is unknown, or of another kind than its default.
    """
    known = {field.name: field for field in fields(params)}
    for key, value in kwargs.items():
        if key not in known:
            hint = nearest(key, known) or f"; it takes {', '.join(known) or 'no arguments'}"
            raise EnvError(f"'{name}' takes no '{key}'{hint}")
        default = known[key].default
        # One that may be of several kinds is left to the code that uses it.
        if "|" not in str(known[key].type) and not _resembles(value, known[key]):
            raise EnvError(f"'{name}': {key} should be like {default!r}, got {brief(value)}")
        if key in _NOT_NEGATIVE and value < 0:
            raise EnvError(f"'{name}': {key} must not be negative, got {value!r}")
    return params(**kwargs)


def check_observation(name: str, parts: Any, num_envs: int) -> None:
    """Reject observations that are not parts ``[n, k]``."""
    wanted = f"'{name}'.observation must return a sequence of arrays ({num_envs}, k)"
    if not isinstance(parts, Sequence):
        raise EnvError(f"{wanted}, got {_shown(parts)}")
    for part in parts:
        if not isinstance(part, np.ndarray) or part.ndim != 2 or len(part) != num_envs:
            raise EnvError(f"{wanted}, got one of {_shown(part)}")


def check_terms(name: str, terms: Any, num_envs: int) -> None:
    """Reject rewards that are not terms by name."""
    wanted = f"'{name}'.reward must return terms by name, each ({num_envs},) or a number"
    if not isinstance(terms, Mapping) or not terms:
        raise EnvError(f"{wanted}, got {_shown(terms)}")
    for key, term in terms.items():
        if not _is_per_env(term, num_envs, "fiub"):
            raise EnvError(f"{wanted}, got for '{key}' {_shown(term)}")


def check_flags(name: str, flags: Any, num_envs: int) -> None:
    """Reject terminations that are neither flags nor None."""
    if flags is not None and not _is_per_env(flags, num_envs, "b"):
        raise EnvError(
            f"'{name}'.terminated must return None or ({num_envs},) bool, got {_shown(flags)}"
        )


def check_initial(name: str, drawn: Any, nq: int, nv: int) -> None:
    """Reject first states that are not a pair of positions and velocities."""
    wanted = f"'{name}'.initial must return qpos ({nq},) and qvel ({nv},)"
    if not isinstance(drawn, Sequence) or len(drawn) != 2:
        raise EnvError(f"{wanted}, got {_shown(drawn)}")
    if (np.shape(drawn[0]), np.shape(drawn[1])) != ((nq,), (nv,)):
        raise EnvError(f"{wanted}, got {_shown(drawn[0])} and {_shown(drawn[1])}")


def _is_per_env(value: Any, num_envs: int, kinds: str) -> bool:
    return np.shape(value) in ((), (num_envs,)) and np.asarray(value).dtype.kind in kinds


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype}"
    return brief(value)


def _resembles(value: Any, field: Field[Any]) -> bool:
    default = field.default
    match default:
        case bool():
            return isinstance(value, bool | np.bool_)
        case int() if field.type in (int, "int"):
            return is_whole(value)
        case int() | float():
            return _is_number(value) and (math.isfinite(value) or not math.isfinite(default))
        case tuple():
            numbers = isinstance(value, Sequence | np.ndarray) and len(value) == len(default)
            return numbers and all(_is_number(each) for each in value)
    return True


def _is_number(value: object) -> bool:
    """Return whether a value is a number, which may be infinite."""
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
