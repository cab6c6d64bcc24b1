"""What can go wrong in a vector environment, each in one line that says where and why."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrl.arguments import brief as shown
from fastrl.errors import ConfigError, EnvError, WorkerError

_MOST = 2**24
NOT_FINITE = "; the action is not finite, so what chose it is at fault"


class ArgumentError(ConfigError, ValueError):
    """An argument is refused before any environment has done anything."""


class EnvFailure(WorkerError, EnvError):  # noqa: N818 - it is told, not made, by an error
    """An environment raised, died with its worker, or broke its contract.

    Attributes:
        env_index: Which environment, None where that is unknown.
        action: What it was given, None outside of a step.
        seed: Its last seed, None if it was never seeded.
        worker: Who stepped it: ``env-worker-1``, ``thread-3`` or ``serial``.
        remote_traceback: The worker's own traceback, empty if it died without one.
    """

    def __init__(
        self,
        message: str,
        *,
        worker: str,
        env_index: int | None = None,
        action: Any = None,  # noqa: ANN401
        seed: int | None = None,
        remote_traceback: str = "",
    ) -> None:
        super().__init__(worker, message, remote_traceback)
        self.env_index, self.action, self.seed = env_index, action, seed


class EnvTimeoutError(EnvFailure, TimeoutError):
    """An environment did not finish within the deadline."""


def is_finite_action(action: Any) -> bool:  # noqa: ANN401
    """Return whether an action, which may be nested, has no NaN and no infinity."""
    if isinstance(action, Mapping):
        return all(map(is_finite_action, action.values()))
    if isinstance(action, tuple | list):
        return all(map(is_finite_action, action))
    found = np.asarray(action)
    return found.dtype.kind not in "fc" or bool(np.isfinite(found).all())


def at_least_one(name: str, value: object) -> int:
    """Return a number of things, of which there must be one.

    Raises:
        ArgumentError: It is no whole number, below 1, or more than anybody has memory for.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentError(f"{name} must be a whole number, got {shown(value)}") from None
    if number < 1:
        raise ArgumentError(f"{name} must be at least 1, got {number}")
    if number > _MOST:
        raise ArgumentError(f"{name} must be at most {_MOST:,}, got {brief(number)}")
    return number


def deadline(name: str, value: object) -> float:
    """Return a time in seconds.

    Raises:
        ArgumentError: It is no number, or not above 0.
    """
    if not isinstance(value, int | float) or not value > 0:
        raise ArgumentError(f"{name} must be a number of seconds above 0, got {shown(value)}")
    return value


def brief(value: object, width: int = 80) -> str:
    """Return a value on one line, cut to ``width`` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


def summary(error: BaseException) -> str:
    """Return an exception's type and text on one line."""
    text = brief(error, 300)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
