"""Where episodes begin, as options of gymnasium's ``reset`` say it: parameters for that reset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from fastrl.arguments import brief, nearest
from fastrl.errors import EnvError

Values = Mapping[str, Any]


class _Options(NamedTuple):
    """The options of one kind of environment.

    Attributes:
        names: What they are called.
        parameters: Returns the parameters that they stand for, of options and parameters by name.
    """

    names: tuple[str, ...]
    parameters: Callable[[Values, Values], dict[str, Any]]


def reset_parameters(name: str, options: Mapping[str, Any], params: Values) -> dict[str, Any]:
    """Return the parameters that options stand for.

    Args:
        name: Id of gymnasium's environment.
        options: Those of ``reset``; what is missing is as the parameters say.
        params: Parameters by name: a number, or an array ``[n]``.

    Raises:
        EnvError: An option is unknown, is no number, or there is nothing between the bounds.
    """
    known = _OPTIONS[name]
    for key, value in options.items():
        if key not in known.names:
            hint = nearest(str(key), known.names) or f"; it knows {' and '.join(known.names)}"
            raise EnvError(f"'{name}' knows no reset option '{key}'{hint}")
        if not isinstance(value, Real) or isinstance(value, bool) or not np.isfinite(float(value)):
            raise EnvError(f"reset option '{key}' must be a number, got {brief(value)}")
    return known.parameters({key: float(options[key]) for key in options}, params)


def _around(options: Values, params: Values) -> dict[str, Any]:
    center, bound = params["reset_center"], params["reset_bound"]
    low, high = _bounds(options, center - bound, center + bound)
    return {"reset_center": (low + high) / 2, "reset_bound": (high - low) / 2}


def _between(options: Values, params: Values) -> dict[str, Any]:
    low, high = _bounds(options, params["reset_low"], params["reset_high"])
    return {"reset_low": low, "reset_high": high}


def _bounds(options: Values, low: Any, high: Any) -> tuple[Any, Any]:  # noqa: ANN401
    low, high = options.get("low", low), options.get("high", high)
    if np.any(low > high):
        raise EnvError(
            f"reset option 'low' must not be above 'high', got {np.max(low)} and {np.min(high)}"
        )
    return low, high


def _magnitudes(options: Values, params: Values) -> dict[str, Any]:
    found = {"x_init": "reset_angle", "y_init": "reset_speed"}
    for key, value in options.items():
        if value < 0:
            raise EnvError(f"reset option '{key}' must not be negative, got {value}")
    return {found[key]: value for key, value in options.items()}


_OPTIONS = {
    "Acrobot-v1": _Options(("low", "high"), _around),
    "CartPole-v1": _Options(("low", "high"), _around),
    "MountainCar-v0": _Options(("low", "high"), _between),
    "MountainCarContinuous-v0": _Options(("low", "high"), _between),
    "Pendulum-v1": _Options(("x_init", "y_init"), _magnitudes),
}
