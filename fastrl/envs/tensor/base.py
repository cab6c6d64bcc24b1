"""The base class of environments as pure functions of tensors, with randomness passed as noise.

Every quantity of a state is a tensor ``[*]`` with one number per environment. ``[*]`` is empty for
a single environment and ``[n]`` for n of them; parameters broadcast against it, so they are shared
or one per environment. All arithmetic is elementwise. Hence a step is the same function for one
environment, for n, and under `torch.func.vmap` over any of its arguments.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, cast

import torch
from gymnasium import spaces
from torch import Tensor

from fastrl.arguments import instance
from fastrl.errors import EnvError
from fastrl.spec import EnvSpec


class Timed(Protocol):
    """A state: a NamedTuple of tensors ``[*]``, or of tuples of these."""

    @property
    def time(self) -> Tensor:
        """``[*]`` int32: steps since the episode began."""


class Limited(Protocol):
    """Parameters: a NamedTuple of tensors that broadcast against ``[*]``."""

    @property
    def max_episode_steps(self) -> Tensor:
        """``[*]`` int32: steps after which an episode is truncated."""


S = TypeVar("S", bound=Timed)
P = TypeVar("P", bound=Limited)
Parameter = Any
"""A tensor that broadcasts against the state; a class of parameters has numbers as defaults."""
Info = dict[str, Any]
Bounds = Mapping[str, tuple[float, float]]
"""Least and greatest value of parameters, by name."""


class TensorEnv(ABC, Generic[S, P]):
    """An environment whose reset and step are pure functions.

    Subclasses define how an episode begins (`initial`), continues (`transition`) and is observed
    (`observe`); this class adds auto-reset and the time limit.

    Attributes:
        spec: Spaces and fields of one environment.
        state_type: The class of its states.
        params_type: The class of its parameters.
        defaults: Values of gymnasium's parameters, by field of ``params_type``.
        aliases: Gymnasium's names of parameters, if different, with the names here.
        switches: Parameters that are 0 or 1, and the words for both values.
        missing: Gymnasium's arguments that do not exist here, with a remedy.
        positive: Parameters that must be above 0.
        non_negative: Parameters that must be at least 0.
        ordered: Pairs of parameters of which the first must not be above the second.
        noise_size: Number of random numbers for each call of `reset` and `step`, per environment.
        supports_gradients: Whether the dynamics can be differentiated.
        differentiable: Whether gradients flow through `reset` and `step`. They stop if an
            episode ends, as the next one does not depend on it.
        written: The names by which a user gave parameters, if different, for messages.
    """

    spec: EnvSpec
    state_type: type[S]
    params_type: type[P]
    defaults: ClassVar[Mapping[str, float]] = {}
    aliases: ClassVar[Mapping[str, str]] = {}
    switches: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    missing: ClassVar[Mapping[str, str]] = {}
    positive: ClassVar[frozenset[str]] = frozenset()
    non_negative: ClassVar[frozenset[str]] = frozenset()
    ordered: ClassVar[Sequence[tuple[str, str]]] = ()
    noise_size: int
    supports_gradients: bool = False
    written: Mapping[str, str] = {}

    def __init__(self, *, differentiable: bool = False) -> None:
        """Choose whether gradients flow.

        Raises:
            EnvError: Gradients are requested, but the environment's actions are discrete.
        """
        if differentiable and not self.supports_gradients:
            raise EnvError(
                f"'{self.spec.id}' has discrete actions and cannot be differentiable; "
                "'Pendulum-v1' and 'MountainCarContinuous-v0' can"
            )
        self.differentiable = differentiable
        self._bounds: Bounds = {name: (value, value) for name, value in self.defaults.items()}

    def default_params(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> P:
        """Return the parameters of gymnasium's environment, as tensors ``[]``.

        States, observations and rewards have their ``dtype``; the time limit stays int32.
        """
        dtypes = {"max_episode_steps": torch.int32}
        values = {
            field: torch.tensor(value, dtype=dtypes.get(field, dtype), device=device)
            for field, value in self.defaults.items()
        }
        return self.params_type(**values)

    def spaces_within(
        self, low: Mapping[str, float], high: Mapping[str, float]
    ) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
        """Return the spaces of observations and actions for parameters from ``low`` to ``high``."""
        return self.spec.observation_space, self.spec.action_space

    def within(self, bounds: Bounds) -> Self:
        """Return this environment with spaces for all parameters within bounds.

        Raises:
            EnvError: A parameter cannot have such a value.
        """
        found = copy.copy(self)
        found._bounds = {**self._bounds, **bounds}
        self._check_bounds(found._bounds)
        low, high = ({name: both[side] for name, both in found._bounds.items()} for side in (0, 1))
        seen, action = self.spaces_within(low, high)
        found.spec = replace(self.spec, observation_space=seen, action_space=action)
        return found

    def fitted(self, params: P) -> Self:
        """Return this environment with spaces for these parameters.

        Raises:
            EnvError: A parameter has an impossible value.
        """
        given = {name: getattr(params, name) for name in getattr(params, "_fields", ())}
        return self.within(
            {
                name: (float(value.min()), float(value.max()))
                for name, value in given.items()
                if isinstance(value, Tensor)
            }
        )

    def _check_bounds(self, bounds: Bounds) -> None:
        for name, (low, high) in bounds.items():
            got = f"got {low:g}" if low == high else f"got values from {low:g} to {high:g}"
            given = f"'{self.spec.id}': {self.written.get(name, name)}"
            if name in self.positive and low <= 0:
                raise EnvError(f"{given} must be above 0, {got}")
            if name in self.non_negative and low < 0:
                raise EnvError(f"{given} must be at least 0, {got}")
        for least, greatest in self.ordered:
            if bounds[least][0] > bounds[greatest][1]:
                raise EnvError(
                    f"'{self.spec.id}': {least} must not be above {greatest}, "
                    f"got {bounds[least][0]:g} and {bounds[greatest][1]:g}"
                )

    @abstractmethod
    def initial(self, noise: Tensor, params: P) -> S:
        """Return the first state of an episode, of noise ``[*, noise_size]``, uniform in [0, 1)."""

    @abstractmethod
    def transition(self, state: S, action: Tensor, params: P) -> tuple[S, Tensor, Tensor]:
        """Return the next state, the reward ``[*]`` and whether it is terminal ``[*]`` bool."""

    @abstractmethod
    def observe(self, state: S) -> Any:
        """Return the observation of a state: ``[*, *shape]``, or a dict of these by leaf."""

    def info(self, state: S) -> Info:
        """Return further information about a state, by name."""
        return {}

    def draw_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Return the noise ``[*shape, noise_size] float32`` for calls of this shape.

        Args:
            shape: ``[]`` or ``[n]`` for one call; ``[T, n]`` for T of them.
            generator: Source of randomness; torch's default if None.
            device: Device of the noise; by default that of the generator. Noise that is
                drawn on one device and moved to another gives the same steps on both.
        """
        source = generator.device if generator is not None else device
        noise = torch.rand(*shape, self.noise_size, generator=generator, device=source)
        return noise if device is None else noise.to(device)

    def begin(self, num_envs: int, generator: torch.Generator | None, params: P) -> tuple[Any, S]:
        """Return `reset` of n environments, with noise of a generator; torch's default if None."""
        noise = self.draw_noise((num_envs,), generator, params.max_episode_steps.device)
        return self.reset(noise, params)

    def reset(self, noise: Tensor, params: P) -> tuple[Any, S]:
        """Return the first observation of an episode and its state, of noise of `draw_noise`.

        Raises:
            EnvError: The noise has another last axis. Not checked in a graph.
        """
        if not torch.compiler.is_compiling():
            shape = instance("noise", noise, Tensor).shape
            if shape[-1:] != (self.noise_size,):
                raise EnvError(
                    f"noise must be a tensor of shape (…, {self.noise_size}), got {tuple(shape)}"
                )
        with torch.set_grad_enabled(self._gradients_flow()):
            state = self.initial(noise, params)
            return self.observe(state), state

    def step(
        self, state: S, action: Tensor, noise: Tensor, params: P
    ) -> tuple[Any, S, Tensor, Tensor, Tensor, Info]:
        """Step once; if the episode ends, begin the next one in the same call.

        Args:
            state: The current state.
            action: ``[*]`` int64 if discrete, else ``[*, *shape]`` floating point.
            noise: ``[*, noise_size]``, uniform in [0, 1): noise of the next episode's first state.
            params: The environment's parameters.

        Returns:
            observation: See `observe`: the first of the next episode if one ended.
            state: The state of this observation.
            reward: ``[*]``.
            terminated: ``[*]`` bool: the step led to a terminal state.
            truncated: ``[*]`` bool: the time limit truncated the episode; never both.
            info: ``final_observation``: observation after the step, before any reset.

        Raises:
            EnvError: Action or noise have another shape; most would silently be broadcast. Or an
                action is not one of a discrete space, which is checked only on the CPU, as a GPU
                would have to be waited for. Not checked in a graph.
        """
        if not torch.compiler.is_compiling():
            shape = self.spec.action_space.shape or ()
            _require_shape("action", action, state.time, tuple(shape))
            _require_shape("noise", noise, state.time, (self.noise_size,))
            if isinstance(self.spec.action_space, spaces.Discrete):
                _require_choice(self.spec, action)
        with torch.set_grad_enabled(self._gradients_flow()):
            reached, reward, terminated = self.transition(state, action, params)
            truncated = ~terminated & (reached.time >= params.max_episode_steps)
            ended = terminated | truncated
            final = self.observe(reached)
            next_state = cast(S, _choose(ended, self.initial(noise, params), reached))
            first = self.observe(next_state)
            info = {"final_observation": final, **self.info(next_state)}
            return first, next_state, reward, terminated, truncated, info

    def _gradients_flow(self) -> bool:
        return self.differentiable and torch.is_grad_enabled()


class TensorWrapper(TensorEnv[S, P], Generic[S, P]):
    """A tensor environment that changes some methods of another one.

    Args:
        env: The other environment.
    """

    def __init__(self, env: TensorEnv[Any, P]) -> None:
        instance("env", env, TensorEnv)
        self.params_type, self.state_type = env.params_type, env.state_type
        self.noise_size, self.supports_gradients = env.noise_size, env.supports_gradients
        self._wrap(env)
        super().__init__(differentiable=env.differentiable)

    def _wrap(self, env: TensorEnv[Any, P]) -> None:
        """Set the environment, and the ``spec`` that depends on it."""
        self._env, self.spec = env, env.spec

    def within(self, bounds: Bounds) -> Self:
        """See `TensorEnv.within`."""
        found = copy.copy(self)
        found._wrap(self._env.within(bounds))
        return found

    def default_params(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> P:
        """See `TensorEnv.default_params`."""
        return self._env.default_params(dtype, device)

    def initial(self, noise: Tensor, params: P) -> S:
        """See `TensorEnv.initial`."""
        return cast(S, self._env.initial(noise, params))

    def transition(self, state: S, action: Tensor, params: P) -> tuple[S, Tensor, Tensor]:
        """See `TensorEnv.transition`."""
        return self._env.transition(state, action, params)

    def observe(self, state: S) -> Any:
        """See `TensorEnv.observe`."""
        return self._env.observe(state)


def _require_shape(name: str, given: Tensor, time: Tensor, own: tuple[int, ...]) -> None:
    """Reject tensors without one entry per environment or one for all."""
    shape = tuple(given.shape) if isinstance(given, Tensor) else None
    batch = tuple(time.shape)
    # Parameters, and the action with them, may have an axis that a single state lacks.
    if shape in ((*batch, *own), own) or (
        not batch and shape and shape[len(shape) - len(own) :] == own
    ):
        return
    got = f"shape {shape}" if shape is not None else type(given).__name__
    raise EnvError(f"{name} must be a tensor of shape {(*batch, *own)}, got {got}")


def _require_choice(spec: EnvSpec, action: Tensor) -> None:
    """Reject values that are not indices of discrete actions."""
    count = int(cast(spaces.Discrete, spec.action_space).n)
    if action.is_floating_point():
        raise EnvError(f"action must be a tensor of whole numbers, got {action.dtype}")
    if action.device.type != "cpu":
        return
    outside = (action < 0) | (action >= count)
    try:
        if not bool(outside.any()):
            return
    except RuntimeError:  # under vmap values cannot be read
        return
    raise wrong_choice(f"'{spec.id}'", count, action[outside].flatten()[0].item())


def wrong_choice(where: str, count: int, action: float) -> EnvError:
    """Return the error for an action outside of a discrete space."""
    return EnvError(f"{where}: action {action} is not one of 0 to {count - 1}")


def columns(*values: Tensor) -> Tensor:
    """Return ``[*, k]`` of k tensors that broadcast to ``[*]``."""
    return torch.stack(torch.broadcast_tensors(*values), dim=-1)


def _choose(mask: Tensor, chosen: Any, other: Any) -> Any:
    """Return ``chosen`` where ``mask`` is set, else ``other``, in every tensor of two states."""
    if isinstance(chosen, Tensor):
        return torch.where(mask, chosen, other)
    pairs = zip(chosen, other, strict=True)
    parts = tuple(_choose(mask, first, second) for first, second in pairs)
    return type(chosen)(*parts) if hasattr(chosen, "_fields") else parts
