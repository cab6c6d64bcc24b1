"""Keyword arguments of environments: dataclasses whose defaults say what each should be like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields
from numbers import Integral, Real
from typing import Any

import numpy as np

from fastrl.arguments import brief, nearest
from fastrl.errors import EnvError

_NOT_NEGATIVE = frozenset({"reset_noise_scale"})


@dataclass(frozen=True)
class Parameters:
    """An environment without keyword arguments of its own; subclass it to add some."""


def parse(name: str, params: type[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401
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
        # One that may be of several kinds is left to whoever uses it.
        if "|" not in str(known[key].type) and not _resembles(value, known[key]):
            raise EnvError(f"'{name}': {key} should be like {default!r}, got {brief(value)}")
        if key in _NOT_NEGATIVE and value < 0:
            raise EnvError(f"'{name}': {key} must not be negative, got {value!r}")
    return params(**kwargs)


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number, of Python or of NumPy."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _resembles(value: Any, field: Field[Any]) -> bool:  # noqa: ANN401
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
