"""`DeviceEnv`: n environments in one object on a device, which keeps their state.

Simulators such as MJX, MuJoCo Warp and Isaac Lab are of this kind. `sampler.kind: device` steps a
`DeviceEnv` in its rollouts; env workers and evaluations step it as a `DeviceBatch`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastrl.arguments import brief, instance
from fastrl.envs.actions import ActionBounds
from fastrl.envs.batched_env import Rows, StepViews
from fastrl.envs.calls import EnvCall
from fastrl.envs.state import State, StateError, load_state, state_of
from fastrl.errors import USERS_FAILURES, EnvError, cause
from fastrl.spaces import TensorSpec, at_path, flatten
from fastrl.spec import EnvSpec


class DeviceStep(NamedTuple):
    """The result of `DeviceEnv.step`; a plain tuple in this order is accepted as well.

    Attributes:
        observation: ``[n, *shape]``, in the dicts and tuples of the space: the first observation of
            the next episode if one ended.
        reward: ``[n]``.
        terminated: ``[n]`` bool: the step led to a terminal state.
        truncated: ``[n]`` bool: a time limit ended the episode. If ``terminated`` is set,
            too, termination counts.
        final_observation: Like ``observation``: the observation after the step, before any reset.
            Only rows of ended episodes are read.
        extras: Fields of `EnvSpec.extras`, by name ``[n, *shape]``.
    """

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    final_observation: Any
    extras: Mapping[str, Any] = {}


_FIELDS = len(DeviceStep._fields)


class DeviceEnv(ABC):
    """Base class of n environments on a device, which keep their own state there.

    The next episode begins in the step that ends one, as in the training wrappers of Brax and
    MuJoCo Playground and in Isaac Lab: the environment resets ended ones itself.

    Arrays are tensors, or arrays of a library that supports DLPack, such as JAX, Warp, CuPy
    and NumPy. They are copied before the next call, so the same memory may be written again.

    Attributes:
        spec: Spaces and fields of one environment. Actions are one array.
        num_envs: n.
        device: Device of its arrays.
    """

    spec: EnvSpec
    num_envs: int
    device: torch.device | str = "cpu"

    @abstractmethod
    def reset(self, seed: int) -> Any:
        """Begin an episode in every environment.

        Args:
            seed: Seed below 2^31; all further episodes depend only on it and on the actions.

        Returns:
            The first observations; see `DeviceStep`.
        """

    @abstractmethod
    def step(self, action: Tensor) -> DeviceStep | tuple[Any, ...]:
        """Step every environment once; if an episode ends, begin the next one.

        Args:
            action: ``[n, *shape]`` on ``device``: float32 within the bounds of a ``Box``, else
                int64 counted from 0.
        """

    def get_state(self) -> State:
        """Return the state on which further steps depend as plain data; see `fastrl.envs.state`.

        Without it and `set_state`, a resumed run begins new episodes.

        Raises:
            StateError: The environment does not offer its state.
        """
        raise StateError(f"'{self.spec.id}' has no get_state() and set_state(state)")

    def set_state(self, state: State) -> None:
        """Restore a state of `get_state`, after a reset.

        Raises:
            StateError: The environment does not offer its state, or the state belongs to another
                one.
        """
        raise StateError(f"'{self.spec.id}' has no get_state() and set_state(state)")

    def close(self) -> None:  # noqa: B027
        """Free the resources of the environments; safe to call twice."""


class DeviceState(NamedTuple):
    """The state of a rollout over a `DeviceEnv`, which keeps its own state.

    Attributes:
        time: ``[n]`` int32: steps since the episode began.
    """

    time: Tensor


class DeviceProgram:
    """A `DeviceEnv` with the methods of a `TensorEnv` for rollouts, and with checks.

    Attributes:
        spec: Spaces and fields of one environment.

    Args:
        env: The environments.

    Raises:
        EnvError: The actions are not one array.
    """

    def __init__(self, env: DeviceEnv) -> None:
        instance("env", env, DeviceEnv)
        self.spec, self._env, self._device = env.spec, env, torch.device(env.device)
        if tuple(env.spec.action) != ("",):
            raise EnvError(
                f"'{env.spec.id}' must take one array of actions, got {env.spec.action_space}"
            )

    def draw_noise(
        self, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """Return ``[*shape, 0]``: the environment draws its own random numbers."""
        return torch.zeros(*shape, 0, device=device)

    def begin(
        self, num_envs: int, generator: torch.Generator | None, params: None
    ) -> tuple[dict[str, Tensor], DeviceState]:
        """Begin an episode in every environment, with a seed from a generator.

        Raises:
            EnvError: It has another number of environments, raised, or broke its contract.
        """
        if num_envs != self._env.num_envs:
            raise EnvError(
                f"'{self.spec.id}' has {self._env.num_envs} environments, but {num_envs} were "
                "requested"
            )
        source = None if generator is None else generator.device
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=source))
        with self._blaming("reset"):
            observation = self._leaves("observation", self._env.reset(seed))
        return observation, DeviceState(
            torch.zeros(num_envs, dtype=torch.int32, device=self._device)
        )

    def step(
        self, state: DeviceState, action: Tensor, noise: Tensor, params: None
    ) -> tuple[dict[str, Tensor], DeviceState, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step once; see `TensorEnv.step`. Noise and parameters are not used.

        Raises:
            EnvError: The environment raised or broke its contract.
        """
        with self._blaming("step"):
            result = self._env.step(action)
            if not isinstance(result, tuple) or len(result) not in (_FIELDS - 1, _FIELDS):
                wanted = f"a DeviceStep or a tuple of its first {_FIELDS - 1} values"
                raise self._misfit("the result of step", wanted, result)
            found = DeviceStep(*result)
            observation = self._leaves("observation", found.observation)
            info: dict[str, Any] = {
                name: self._tensor(name, found.extras[name], spec)
                for name, spec in self.spec.extras.items()
            }
            info["final_observation"] = self._leaves("final_observation", found.final_observation)
            reward = self._tensor("reward", found.reward, TensorSpec((), torch.float32))
            terminated, truncated = (
                self._tensor(name, getattr(found, name), TensorSpec((), torch.bool))
                for name in ("terminated", "truncated")
            )
        truncated &= ~terminated
        time = torch.where(terminated | truncated, 0, state.time + 1)
        return observation, DeviceState(time), reward, terminated, truncated, info

    def info(self, state: DeviceState) -> dict[str, Any]:
        """Return nothing: there are no randomised parameters to record."""
        return {}

    def _leaves(self, name: str, observation: Any) -> dict[str, Tensor]:
        space = self.spec.observation_space
        try:
            leaves = tuple(flatten(space, observation))
        except (TypeError, KeyError, IndexError, ValueError, RuntimeError):
            raise self._misfit(name, f"of the form of {brief(space)}", observation) from None
        pairs = zip(self.spec.observation.items(), leaves, strict=True)
        return {path: self._tensor(name + at_path(path), x, spec) for (path, spec), x in pairs}

    def _tensor(self, name: str, array: Any, spec: TensorSpec) -> Tensor:
        """Return a copy of an array, in the dtype of rollouts."""
        if not hasattr(array, "__dlpack__"):
            raise self._misfit(name, "a tensor or an array with DLPack", array)
        tensor = array if isinstance(array, Tensor) else from_dlpack(array)
        wanted = [self._env.num_envs, *spec.shape]
        if list(tensor.shape) != wanted or tensor.device.type != self._device.type:
            raise EnvError(
                f"'{self.spec.id}': {name} must be {wanted} on {self._device}, got "
                f"{list(tensor.shape)} on {tensor.device}"
            )
        return tensor.detach().to(spec.dtype, copy=True)

    def _misfit(self, name: str, wanted: str, found: object) -> EnvError:
        return EnvError(f"'{self.spec.id}': {name} must be {wanted}, got {brief(found)}")

    @contextmanager
    def _blaming(self, method: str) -> Iterator[None]:
        try:
            yield
        except EnvError:
            raise
        except USERS_FAILURES as error:
            raise EnvError(f"'{self.spec.id}' failed in {method}(): {cause(error)}") from error


class DeviceBatch:
    """A `DeviceEnv` as a `BatchedEnv`, through the memory of this process.

    Attributes:
        env: The environments.
        spec: Spaces and fields of each of them.
        num_envs: n.

    Args:
        env: The environments, which are closed by `close`.
        bounds: ``clip`` or ``squash`` for ``Box`` actions.
    """

    def __init__(self, env: DeviceEnv, bounds: ActionBounds = "clip") -> None:
        self._program, self._device = DeviceProgram(env), torch.device(env.device)
        self.env, self.spec, self.num_envs = env, env.spec, env.num_envs
        self._inside = bounding(env.spec.action_space, bounds == "squash", self._device)
        self._state = DeviceState(torch.zeros(env.num_envs, dtype=torch.int32))

    def reset(self, seeds: Sequence[int], observation: Rows) -> None:
        """Start an episode in every environment, from one common seed; see `BatchedEnv.reset`."""
        seed = int(np.random.SeedSequence([int(each) for each in seeds]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        found, self._state = self._program.begin(self.num_envs, generator, None)
        _write(found, observation)

    def step(self, views: StepViews) -> None:
        """Step every environment once; see `BatchedEnv.step`."""
        action = self._inside(torch.tensor(views.action[0], device=self._device))
        found, self._state, reward, terminated, truncated, info = self._program.step(
            self._state, action, action, None
        )
        _write(found, views.observation)
        flags = {"reward": reward, "terminated": terminated, "truncated": truncated}
        _write(flags, (views.reward, views.terminated, views.truncated))
        ended = views.terminated | views.truncated
        if ended.any():
            _write(info["final_observation"], views.final_observation, ended)
        for name, rows in views.extras.items():
            rows[...] = info[name].cpu().numpy()

    def make_call(self, call: EnvCall) -> None:
        """Make a call of the object with all environments."""
        call.make(self.env, f"'{self.spec.id}'")

    def get_state(self) -> State:
        """Return the state of the environments."""
        return state_of(self.env)

    def set_state(self, state: State) -> None:
        """Restore a state of `get_state`."""
        load_state(self.env, state)

    def close(self) -> None:
        """Close the environments; safe to call twice."""
        self.env.close()


def _write(tensors: Mapping[str, Tensor], rows: Rows, where: Any = ...) -> None:
    for tensor, row in zip(tensors.values(), rows, strict=True):
        row[where] = tensor.cpu().numpy()[where]


def bounding(
    space: spaces.Space[Any], squash: bool, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return a function from samples to actions, as `fastrl.envs.actions` does for arrays."""
    if not isinstance(space, spaces.Box):
        return lambda action: action
    low, high = (torch.from_numpy(bound).to(device) for bound in (space.low, space.high))
    if squash:
        return lambda action: low + (high - low) * (torch.tanh(action) + 1) / 2
    return lambda action: torch.clamp(action, low, high)
