"""Distributions of parameters, as configurations write them.

::

    length:   {uniform: [0.4, 0.6]}
    masspole: {log_uniform: [0.05, 0.2]}
    gravity:  {normal: [9.8, 0.1]}
    tau:      {choice: [0.01, 0.02]}

A parameter may be an array: each number is then a list that broadcasts against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastrl.arguments import brief, nearest_or_all
from fastrl.errors import EnvError

Numbers = NDArray[np.float64]

_EXPECTED = {
    "uniform": "[lowest, highest]",
    "log_uniform": "[lowest, highest] above 0",
    "normal": "[mean, standard deviation of at least 0]",
    "choice": "a list of the values to choose from",
}
KINDS = tuple(_EXPECTED)
"""The names of distributions."""


@dataclass(frozen=True)
class Distribution:
    """A distribution of a parameter.

    Attributes:
        kind: ``uniform``, ``log_uniform``, ``normal``, ``choice`` or ``constant``.
        values: The two numbers; all values of ``choice``; the one of ``constant``.
    """

    kind: str
    values: tuple[Numbers, ...]

    @property
    def ends(self) -> tuple[Numbers, ...]:
        """The least and the greatest value, element by element; empty if there are none."""
        if self.kind == "choice":
            return np.min(self.values, axis=0), np.max(self.values, axis=0)
        return () if self.kind == "normal" else self.values

    def sample(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Numbers:
        """Make a draw for each element of a shape, which the distribution's numbers may extend."""
        if self.kind == "constant":
            return self.values[0]
        if self.kind == "choice":
            chosen = generator.integers(len(self.values), size=shape)
            if not shape or not any(value.ndim for value in self.values):
                return np.asarray(self.values)[chosen]
            return np.select([chosen == index for index in range(len(self.values))], self.values)
        first, second = self.values
        if self.kind == "normal":
            return first + second * generator.standard_normal(shape)
        if self.kind == "log_uniform":
            first, second = np.log(first), np.log(second)
        drawn = first + (second - first) * generator.random(shape)
        return np.exp(drawn) if self.kind == "log_uniform" else drawn


def distribution(specification: object, where: str) -> Distribution:
    """Return the distribution that a configuration describes.

    Args:
        specification: See this module's docstring.
        where: Key of the configuration, such as ``env.randomize.length``.

    Raises:
        EnvError: It is unknown, or its numbers are invalid.
    """
    if not isinstance(specification, Mapping) or len(specification) != 1:
        raise EnvError(
            f"{where}: expected one distribution such as {{uniform: [0.4, 0.6]}}, "
            f"got {specification!r}"
        )
    ((kind, given),) = specification.items()
    if kind not in _EXPECTED:
        hint = nearest_or_all(str(kind), _EXPECTED)
        raise EnvError(f"{where}: unknown distribution '{kind}'{hint}")
    where = f"{where}.{kind}"
    given = given.tolist() if isinstance(given, np.ndarray) else given
    is_list = isinstance(given, Sequence) and not isinstance(given, str)
    each = (numbers(given, where) if kind == "choice" else given) if is_list else ()
    values = tuple(numbers(value, where) for value in each)
    if not _fits(kind, values):
        raise EnvError(f"{where}: expected {_EXPECTED[kind]}, got {given!r}")
    return Distribution(kind, values)


def numbers(value: object, where: str) -> Numbers:
    """Return finite numbers as an array.

    Raises:
        EnvError: ``value`` is not finite numbers.
    """
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise EnvError(f"{where}: expected numbers, got {brief(value)}") from None
    if not np.isfinite(found).all():
        raise EnvError(f"{where}: expected finite numbers, got {value!r}")
    return found


def _fits(kind: str, values: tuple[Numbers, ...]) -> bool:
    if kind == "choice":
        return bool(values)
    if len(values) != 2:
        return False
    try:
        first, second = np.broadcast_arrays(*values)
    except ValueError:
        return False
    if kind == "normal":
        return bool((second >= 0).all())
    return bool((first <= second).all() and (kind == "uniform" or (first > 0).all()))
