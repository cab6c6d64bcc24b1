"""Parameters of every instance: given one by one, by a function of the index, or drawn.

A value ``{uniform: [low, high]}``, ``{log_uniform: [low, high]}``, ``{normal: [mean, std]}`` or
``{choice: [a, b, …]}`` among the parameters is a distribution, from which every instance draws its
own number once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastrl.arguments import nearest
from fastrl.vector.failures import ArgumentError, brief

EnvKwargs = Mapping[str, Any] | Sequence[Mapping[str, Any]] | Callable[[int], Mapping[str, Any]]

_DRAWS: Mapping[str, Callable[[np.random.Generator, list[Any]], Any]] = {
    "uniform": lambda rng, given: float(rng.uniform(*given)),
    "log_uniform": lambda rng, given: math.exp(_DRAWS["uniform"](rng, [*map(math.log, given)])),
    "normal": lambda rng, given: float(rng.normal(*given)),
    "choice": lambda rng, given: given[int(rng.integers(len(given)))],
}


_WANTED = {
    "uniform": "two numbers",
    "log_uniform": "two numbers above 0",
    "normal": "a mean and a standard deviation of at least 0",
    "choice": "a list of what to choose from",
}


def kwargs_of_instances(
    env_kwargs: EnvKwargs | None, num_envs: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Return the parameters of every instance.

    Args:
        env_kwargs: The same for all, perhaps with distributions; one mapping per instance; or a
            function of the index.
        num_envs: Number of instances.
        seed: Of the draws; instance i draws the same whatever the number of instances.

    Returns:
        A single mapping where all instances are the same, else one for each.

    Raises:
        ArgumentError: There is not one mapping per instance, or a distribution does not fit.
    """
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ArgumentError(
            f"env_kwargs_seed must be a whole number of at least 0, got {brief(repr(seed))}"
        )
    if env_kwargs is None:
        return [{}]
    if isinstance(env_kwargs, Mapping):
        if not any(_is_distribution(value) for value in env_kwargs.values()):
            return [dict(env_kwargs)]
        given: list[Any] = [env_kwargs] * num_envs
    elif callable(env_kwargs):
        given = [env_kwargs(index) for index in range(num_envs)]
    elif isinstance(env_kwargs, Sequence) and not isinstance(env_kwargs, str):
        given = list(env_kwargs)
    else:
        raise ArgumentError(
            "env_kwargs must be a mapping, a list of mappings or a function of the index, "
            f"got {brief(repr(env_kwargs))}"
        )
    if len(given) != num_envs:
        raise ArgumentError(f"env_kwargs: got {len(given)} mappings for {num_envs} environments")
    return [_drawn(each, index, seed) for index, each in enumerate(given)]


def _drawn(kwargs: Any, index: int, seed: int) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(kwargs, Mapping):
        raise ArgumentError(f"env_kwargs of env {index} is no mapping: {brief(kwargs)}")
    rng = np.random.default_rng((seed, index))
    return {
        name: _draw(name, value, rng) if _is_distribution(value) else value
        for name, value in kwargs.items()
    }


def _draw(name: str, value: Mapping[str, Any], rng: np.random.Generator) -> Any:  # noqa: ANN401
    ((kind, given),) = value.items()
    try:
        return _DRAWS[kind](rng, list(given))
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(
            f"env_kwargs.{name}: {kind} does not take {brief(given)}; write {_WANTED[kind]}"
        ) from error


def _is_distribution(value: object) -> bool:
    """Return whether something is to be drawn from.

    Raises:
        ArgumentError: It is meant to be, as far as the name goes.
    """
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    kind = next(iter(value))
    if kind not in _DRAWS and isinstance(kind, str) and (hint := nearest(kind, _DRAWS, 0.75)):
        raise ArgumentError(f"env_kwargs: unknown distribution '{brief(kind)}'{hint}")
    return kind in _DRAWS
