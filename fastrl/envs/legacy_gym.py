"""Environments written for gym, the predecessor of gymnasium, up to version 0.26.

Everything is told by its shape, so gym need not be installed: an old environment is any object
with ``reset``, ``step`` and the two spaces, and a space is known by the name of its class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec

from fastrl.errors import EnvError, SpaceError


class LegacyGymEnv(gymnasium.Env[Any, Any]):
    """Presents an old environment as a gymnasium environment.

    Both protocols are understood, also mixed: ``reset`` returning an observation (gym 0.21) or
    a pair with ``info`` (0.26), ``step`` returning four values or five. Of four, ``done`` is a
    truncation where ``info["TimeLimit.truncated"]`` says so, and a termination otherwise.
    """

    def __init__(self, env: Any) -> None:  # noqa: ANN401
        """Wrap ``env`` and convert its spaces.

        Raises:
            SpaceError: A space is of a kind that gymnasium does not have.
        """
        self.env = env
        self.observation_space = convert_space(env.observation_space)
        self.action_space = convert_space(env.action_space)
        self.metadata = dict(getattr(env, "metadata", None) or {})
        self.render_mode = getattr(env, "render_mode", None)
        old: Any = getattr(env, "spec", None)
        if isinstance(getattr(old, "id", None), str):
            self.spec = GymnasiumSpec(old.id, max_episode_steps=old.max_episode_steps)
        self._reset_takes_seed = _takes_seed(getattr(env, "unwrapped", env).reset)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; an environment that cannot be seeded ignores ``seed``."""
        arguments: dict[str, Any] = {} if options is None else {"options": options}
        if seed is not None and self._reset_takes_seed:
            arguments["seed"] = seed
        elif seed is not None and callable(getattr(self.env, "seed", None)):
            self.env.seed(seed)
        result = self.env.reset(**arguments)
        return result if self._is_pair(result) else (result, {})

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:  # noqa: ANN401
        """Step once.

        Raises:
            EnvError: The environment returned neither four nor five values.
        """
        result = self.env.step(action)
        if len(result) == 5:
            return result  # type: ignore[no-any-return]
        if len(result) != 4:
            raise EnvError(f"step of {self.env} returned {len(result)} values; expected 4 or 5")
        observation, reward, done, info = result
        truncated = bool(done) and bool(info.get("TimeLimit.truncated", False))
        return observation, reward, bool(done) and not truncated, truncated, info

    def render(self) -> Any:  # noqa: ANN401
        """Return what the old environment renders."""
        return self.env.render()

    def close(self) -> None:
        """Close the old environment, where it can be closed."""
        if callable(getattr(self.env, "close", None)):
            self.env.close()

    @property
    def unwrapped(self) -> gymnasium.Env[Any, Any]:
        """This adapter: nothing beneath it is a gymnasium environment."""
        return self

    def _is_pair(self, result: Any) -> bool:  # noqa: ANN401
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            return False
        # An observation may look the same.
        space = self.observation_space
        return not (isinstance(space, spaces.Tuple) and space.contains(result))


def is_legacy_env(env: object) -> bool:
    """Return whether ``env`` looks like one environment, but not one of gymnasium's."""
    if isinstance(env, gymnasium.Env) or hasattr(env, "num_envs"):
        return False
    names = ("reset", "step", "observation_space", "action_space")
    return all(hasattr(env, name) for name in names)


def convert_space(space: Any) -> spaces.Space[Any]:  # noqa: ANN401
    """Return the gymnasium space that equals an old space, found by the names of its classes.

    Raises:
        SpaceError: No class of ``space`` has the name of a known space.
    """
    if isinstance(space, spaces.Space):
        return space
    for cls in type(space).__mro__:
        # Crafter names its stand-ins BoxSpace and DiscreteSpace.
        convert = _CONVERTERS.get(cls.__name__.removesuffix("Space"))
        if convert is not None:
            return convert(space)
    raise SpaceError(f"unsupported space {space!r}; supported are {', '.join(_CONVERTERS)}")


def _box(space: Any) -> spaces.Space[Any]:  # noqa: ANN401
    dtype = np.dtype(space.dtype)
    low, high = (
        np.broadcast_to(bound, space.shape).astype(dtype) for bound in (space.low, space.high)
    )
    return spaces.Box(low, high, tuple(space.shape), dtype=dtype.type)


def _takes_seed(reset: Callable[..., Any]) -> bool:
    try:
        return "seed" in inspect.signature(reset).parameters
    except (TypeError, ValueError):
        return False


_CONVERTERS: dict[str, Callable[[Any], spaces.Space[Any]]] = {
    "Box": _box,
    "Discrete": lambda space: spaces.Discrete(int(space.n), start=int(getattr(space, "start", 0))),
    "MultiDiscrete": lambda space: spaces.MultiDiscrete(np.asarray(space.nvec)),
    "MultiBinary": lambda space: spaces.MultiBinary(space.n),
    "Dict": lambda space: spaces.Dict(
        [(name, convert_space(child)) for name, child in space.spaces.items()]
    ),
    "Tuple": lambda space: spaces.Tuple([convert_space(child) for child in space.spaces]),
}
