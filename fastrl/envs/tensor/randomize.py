"""Domain randomisation: parameters drawn from distributions, per environment and per episode.

A specification maps parameters to distributions; see `fastrl.envs.parameter_distributions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any, Generic, NamedTuple, Self, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from fastrl.arguments import brief, instance, nearest_or_all
from fastrl.envs.parameter_distributions import Distribution, distribution
from fastrl.envs.tensor.base import (
    Bounds,
    Info,
    P,
    S,
    TensorEnv,
    TensorWrapper,
    columns,
)
from fastrl.errors import EnvError
from fastrl.spec import EnvSpec

Quantile = Callable[[Tensor], Tensor]
"""Maps noise ``[*]``, uniform in [0, 1), to values ``[*]`` of a distribution, dtype kept."""

_NOISE_STEP = 2**-24
"""Step of the noise, which is a multiple of it."""
_ENDS = torch.tensor([0.0, 1 - _NOISE_STEP])


def quantiles(
    specification: Mapping[str, Any] | None, known: Sequence[str]
) -> tuple[dict[str, Quantile], Bounds]:
    """Return the quantile function and the bounds of each parameter, in the order of ``known``.

    Raises:
        EnvError: A parameter or distribution is unknown, or its numbers are invalid.
    """
    specification = {} if specification is None else specification
    if not isinstance(specification, Mapping):
        raise EnvError(f"env.randomize: expected distributions by name, got {brief(specification)}")
    for name in specification:
        if name not in known:
            hint = nearest_or_all(str(name), known)
            raise EnvError(f"env.randomize: unknown parameter '{name}'{hint}")
    found, bounds = {}, {}
    for name in known:
        if name in specification:
            where = f"env.randomize.{name}"
            drawn = distribution(specification[name], where)
            if any(value.ndim for value in drawn.values):
                raise EnvError(f"{where}: expected numbers, got {specification[name]!r}")
            found[name] = quantile = _quantile(drawn)
            values = drawn.values if drawn.kind == "choice" else quantile(_ENDS).tolist()
            bounds[name] = (float(min(values)), float(max(values)))
    return found, bounds


def randomizable(env: TensorEnv[Any, Any]) -> list[str]:
    """Return the parameters of an environment that can be randomised."""
    return [name for name in env.defaults if name != "max_episode_steps"]


def named(env: TensorEnv[Any, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters, given by names here or in gymnasium, by names here, with words as numbers.

    ``env.written`` becomes the names that were given.

    Raises:
        EnvError: A parameter is unknown, is given twice, or is a switch that is neither on nor off.
    """
    known, found = randomizable(env), {}
    for key, value in given.items():
        name = env.aliases.get(key, key)
        if name in env.missing:
            raise EnvError(f"'{env.spec.id}' has no '{key}' here: {env.missing[name]}")
        if name not in known:
            hint = nearest_or_all(str(key), [*known, *env.aliases])
            raise EnvError(f"'{env.spec.id}' has no parameter '{key}'{hint}")
        if name in found:
            raise EnvError(f"'{env.spec.id}': '{key}' is another name of a parameter given too")
        found[name] = _switched(key, value, env.switches[name]) if name in env.switches else value
        env.written = {**env.written, name: key}
    return found


def _switched(name: str, value: Any, words: Mapping[str, float]) -> Any:
    """Return a switch as 0.0 or 1.0, or one of these for each environment."""
    given = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    several = isinstance(given, Sequence) and not isinstance(given, str)
    all_given: list[Any] = [*given] if several else [given]
    found: list[Any] = [words.get(each) if isinstance(each, str) else each for each in all_given]
    if not all(isinstance(each, Real) and each in (0, 1) for each in found):
        known = " or ".join(map(repr, words)) or "true or false"
        raise EnvError(f"env.kwargs.{name}: expected {known}, got {brief(value)}")
    return np.array(found, np.float64) if several else float(found[0])


def exposed(spec: EnvSpec, count: int) -> EnvSpec:
    """Return the spec of an environment that also observes ``count`` randomised parameters.

    Raises:
        EnvError: There are no randomised parameters.
    """
    if count == 0:
        raise EnvError("there are no parameters to expose, since env.randomize is empty")
    params = spaces.Box(-np.inf, np.inf, (count,))
    both = spaces.Dict({"observation": spec.observation_space, "params": params})
    return replace(spec, observation_space=both)


class RandomizedState(NamedTuple):
    """A state, and the parameters of its episode.

    Attributes:
        inner: State of the randomised environment.
        drawn: Its randomised parameters, ``[*]`` each.
    """

    inner: Any
    drawn: tuple[Tensor, ...]

    @property
    def time(self) -> Tensor:
        """``[*]`` int32: steps since the episode began."""
        return cast(Tensor, self.inner.time)


class Randomized(TensorWrapper[RandomizedState, P], Generic[S, P]):
    """An environment that draws some parameters in every episode.

    They are part of the state, and ``info["params"]`` of a step has those of the returned
    state: ``[*, R]``, in the order of `names`.

    Attributes:
        names: The randomised parameters.
    """

    def __init__(
        self, env: TensorEnv[S, P], specification: Mapping[str, Any], *, expose: bool = False
    ) -> None:
        """Randomise ``env``.

        Args:
            env: The environment.
            specification: See this module's docstring.
            expose: Observe ``{"observation": …, "params": …}``, for policies that use them.

        Raises:
            EnvError: A parameter or distribution is unknown, its numbers are invalid, or it draws
                impossible values.
        """
        known = randomizable(instance("env", env, TensorEnv))
        self._quantiles, bounds = quantiles(specification, known)
        self.names, self._exposes = tuple(self._quantiles), expose
        super().__init__(env.within(bounds))
        self.state_type, self.noise_size = RandomizedState, env.noise_size + len(self.names)

    def within(self, bounds: Bounds) -> Self:
        """See `TensorEnv.within`; randomised parameters keep the bounds of their distributions."""
        return super().within({k: both for k, both in bounds.items() if k not in self.names})

    def _wrap(self, env: TensorEnv[Any, P]) -> None:
        self._env = env
        self.spec = exposed(env.spec, len(self.names)) if self._exposes else env.spec

    def initial(self, noise: Tensor, params: P) -> RandomizedState:
        """See `TensorEnv.initial`; the last columns of noise are for the parameters."""
        own = noise[..., self._env.noise_size :].unbind(-1)
        drawn = tuple(
            quantile(column.to(getattr(params, name).dtype))
            for (name, quantile), column in zip(self._quantiles.items(), own, strict=True)
        )
        return RandomizedState(self._env.initial(noise, self._with(params, drawn)), drawn)

    def transition(
        self, state: RandomizedState, action: Tensor, params: P
    ) -> tuple[RandomizedState, Tensor, Tensor]:
        """See `TensorEnv.transition`; randomised parameters come from the state."""
        own = self._with(params, state.drawn)
        reached, reward, terminated = self._env.transition(state.inner, action, own)
        return RandomizedState(reached, state.drawn), reward, terminated

    def observe(self, state: RandomizedState) -> Any:
        """See `TensorEnv.observe`."""
        observation = self._env.observe(state.inner)
        return {"observation": observation, **self.info(state)} if self._exposes else observation

    def info(self, state: RandomizedState) -> Info:
        """Return ``params``, ``[*, R]``: the randomised parameters."""
        return {"params": columns(*state.drawn)}

    def _with(self, params: P, drawn: tuple[Tensor, ...]) -> P:
        fields = dict(zip(self.names, drawn, strict=True))
        return cast(P, params._replace(**fields))  # type: ignore[attr-defined]


def _quantile(drawn: Distribution) -> Quantile:
    values = [float(value) for value in drawn.values]
    if drawn.kind == "choice":
        return partial(_pick, values)
    first, second = values
    if drawn.kind == "uniform":
        return lambda noise: first + (second - first) * noise
    if drawn.kind == "normal":
        # Noise of 0 would be minus infinity.
        return lambda noise: first + second * torch.special.ndtri(noise.clamp(min=_NOISE_STEP / 2))
    start, width = math.log(first), math.log(second) - math.log(first)
    return lambda noise: torch.exp(start + width * noise)


def _pick(values: Sequence[float], noise: Tensor) -> Tensor:
    # One comparison for each value, to avoid copying a table to the device.
    place, picked = noise * len(values), torch.full_like(noise, values[0])
    for index, value in enumerate(values[1:], start=1):
        picked = torch.where(place >= index, value, picked)
    return picked
