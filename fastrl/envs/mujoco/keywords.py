"""Keyword arguments of environments: dataclasses whose defaults say what each should be like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import numpy as np

from fastrl.envs.lookup import nearest
from fastrl.errors import EnvError


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
        if "|" not in str(known[key].type) and not _resembles(value, default):
            raise EnvError(f"'{name}': {key} should be like {default!r}, got {value!r}")
    return params(**kwargs)


def _resembles(value: Any, default: object) -> bool:  # noqa: ANN401
    match default:
        case bool():
            return isinstance(value, bool | np.bool_)
        case int() | float():
            return isinstance(value, Real) and not isinstance(value, bool)
        case tuple():
            numbers = isinstance(value, Sequence | np.ndarray) and len(value) == len(default)
            return numbers and all(isinstance(each, Real) for each in value)
    return True
