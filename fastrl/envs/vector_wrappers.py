"""Resets of some environments beneath gymnasium's wrappers of vector environments.

Some of these wrappers reject such a reset or, like `NormalizeReward`, drop their values of all
environments. So the environment beneath them is reset, and here each wrapper's transformation is
applied to the new observations and its values of these environments are reset. Other wrappers that
override ``reset`` are passed ``options["reset_mask"]``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv, VectorObservationWrapper, VectorWrapper
from gymnasium.wrappers.vector import (
    DictInfoToList,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
)
from numpy.typing import NDArray

from fastrl.errors import EnvError

Wrapped = Callable[[Any, Any, NDArray[np.bool_]], Any]
"""``(wrapper, observation, ended)``: from the observation beneath a wrapper to that of the wrapper.

Observations are of all environments, or of those that ``ended`` only.
"""


def known_wrapper(env: VectorWrapper[Any, Any, Any, Any, Any]) -> Wrapped | None:
    """Return what a wrapper does in a reset, None if it must be reset itself."""
    return _KNOWN.get(type(env).reset)


def check_wrapper(wrapper: Any, env: Any, name: str) -> None:
    """Raise an `EnvError` if only one of a wrapper and an environment is of vector environments."""
    while isinstance(wrapper, functools.partial):
        wrapper = wrapper.func
    if not inspect.isclass(wrapper):
        return
    if issubclass(wrapper, gymnasium.Wrapper) and isinstance(env, VectorEnv):
        raise EnvError(
            f"env.wrappers: {wrapper.__name__} wraps single environments and '{name}' is a vector "
            "environment; take a wrapper of gymnasium.wrappers.vector, or single environments"
        )
    if issubclass(wrapper, VectorWrapper) and not isinstance(env, VectorEnv):
        raise EnvError(
            f"env.wrappers: {wrapper.__name__} wraps vector environments and '{name}' is not one; "
            "take a wrapper of gymnasium.wrappers, or a vector environment"
        )


def _unchanged(env: Any, observation: Any, ended: NDArray[np.bool_]) -> Any:
    return observation


def _forgetting_returns(env: Any, observation: Any, ended: NDArray[np.bool_]) -> Any:
    env.accumulated_reward[ended] = 0
    env._prev_dones[ended] = 0
    return observation


def _transformed(env: Any, observation: Any, ended: NDArray[np.bool_]) -> Any:
    if not isinstance(observation, np.ndarray) or len(observation) == len(ended):
        return env.observations(observation)
    # These wrappers need observations of all: any serves for those whose episodes continue.
    places = np.zeros(len(ended), np.intp)
    places[ended] = np.arange(len(observation))
    return env.observations(observation[places])[ended]


def _normalized(env: Any, observation: Any, ended: NDArray[np.bool_]) -> Any:
    """Return normalised observations; only the new ones change the statistics."""
    if len(observation) != len(ended):
        return env.observations(observation)
    updates, env.update_running_mean = env.update_running_mean, False
    whole = env.observations(observation)
    env.update_running_mean = updates
    whole[ended] = env.observations(observation[ended])
    return whole


_KNOWN: dict[Any, Wrapped] = {
    NormalizeObservation.reset: _normalized,
    NormalizeReward.reset: _forgetting_returns,
    RecordEpisodeStatistics.reset: _unchanged,
    DictInfoToList.reset: _unchanged,
    VectorObservationWrapper.reset: _transformed,
    VectorWrapper.reset: _unchanged,
}
