"""Rollouts of environments and a policy on a device, in one call.

Nothing leaves the device: T steps of n environments are one function of weights, states and noise,
which `torch.compile` turns into a graph without Python. A `DeviceEnv` keeps its
state itself and is stepped by the same loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, cast

import torch
from torch import Tensor

from fastrl.arguments import instance, methods, whole
from fastrl.envs.device_env import DeviceEnv, DeviceProgram, bounding
from fastrl.envs.state import StateError
from fastrl.envs.tensor.base import P, S, TensorEnv
from fastrl.envs.tensor.tensor_policy import TensorPolicy, Weights
from fastrl.errors import EnvError
from fastrl.spec import checked_step, only_given, outputs_of, split_mask


class TensorRollout(NamedTuple):
    """T steps of n environments.

    Attributes:
        observation: By leaf ``[T+1, n, *shape]``.
        action: By leaf ``[T, n, *shape]``, as the policy sampled them.
        reward: ``[T, n]``.
        terminated: ``[T, n]`` bool.
        truncated: ``[T, n]`` bool.
        outputs: Outputs of the policy, by name ``[T, n, *shape]``; ``value`` is ``[T+1, n]``.
        final_value: ``[T, n]``: value of the final observation where truncated, else 0; None if
            the policy has no value.
        final_observation: By leaf ``[T, n, *shape]``: the last observation of the episode that
            ended; other rows are arbitrary.
        extras: Extra fields of the environment, see `EnvSpec.extras`, by name ``[T, n, *shape]``.
        episode_return: ``[T, n]``: undiscounted return of the episode that ended, else 0.
        episode_length: ``[T, n]`` int32: length of that episode in steps, else 0.
        params: ``[T+1, n, R]``: the randomised parameters; None if there are none.
        policy_state: ``[K+1, n, S]``: the policy's state before every L-th step, reset if an
            episode begins, with K = T / L; row K begins the next rollout. None for a policy
            without a memory.
    """

    observation: dict[str, Tensor]
    action: dict[str, Tensor]
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    outputs: dict[str, Tensor]
    final_value: Tensor | None
    final_observation: dict[str, Tensor]
    extras: dict[str, Tensor]
    episode_return: Tensor
    episode_length: Tensor
    params: Tensor | None
    policy_state: Tensor | None = None


class Start(NamedTuple):
    """The start of a rollout: observations, states, and returns of the episodes so far.

    Attributes:
        observation: By leaf ``[n, *shape]``.
        state: States of the environments; for a `DeviceEnv` the steps of their episodes.
        episode_return: ``[n]``: rewards of the episode so far.
        policy_state: ``[n, S]``: the policy's state before the first step; None without a memory.
    """

    observation: dict[str, Tensor]
    state: Any
    episode_return: Tensor
    policy_state: Tensor | None = None


class Noise(NamedTuple):
    """All random numbers of a rollout.

    Attributes:
        policy: ``[T, n, …]``.
        env: ``[T, n, noise_size]``.
    """

    policy: Tensor
    env: Tensor


class Rollouts(Generic[S, P]):
    """Consecutive rollouts of one environment and one policy.

    Rollouts of a `DeviceEnv` must be consecutive, as it keeps its state itself.
    """

    def __init__(
        self,
        env: TensorEnv[S, P] | DeviceEnv,
        policy: TensorPolicy,
        params: P | None = None,
        *,
        squash: bool = False,
        steps_per_graph: int = 0,
        sequence_length: int | None = None,
    ) -> None:
        """Prepare; compilation happens in the first call of each shape.

        Args:
            env: The environment.
            policy: Policy that acts and returns values.
            params: Parameters of a tensor environment, on the device of the rollouts.
            squash: Map samples for a ``Box`` into its bounds by tanh, rather than clip them.
            steps_per_graph: Most steps in a graph of `torch.compile`; on a GPU
                it is a CUDA graph, on a CPU it needs a C++ compiler. More take longer to
                compile. 0 runs without graphs, as a `DeviceEnv` requires.
            sequence_length: L, which divides the length of rollouts; None for that length. For a
                policy with a memory.

        Raises:
            ConfigError: An argument is of the wrong kind.
            EnvError: A parameter has an impossible value, or a `DeviceEnv` takes actions that are
                not one array.
        """
        whole("steps_per_graph", steps_per_graph, at_least=0)
        if sequence_length is not None:
            whole("sequence_length", sequence_length)
        methods("policy", policy, ("draw_noise", "act", "value"))
        self._env: Any
        if isinstance(env, DeviceEnv):
            self._env, self._device = DeviceProgram(env), torch.device(env.device)
            steps_per_graph = 0
        else:
            instance("env", env, TensorEnv)
            limited: P = instance("params", cast(P, params), env.params_type)
            self._env, self._device = env.fitted(limited), limited.max_episode_steps.device
        self._policy, self._params, spec = policy, params, self._env.spec
        self._outputs = outputs_of(policy)
        # Not in a graph: torch does not compile properties that are computed once.
        self._mask = spec.action_mask
        self._inside = bounding(spec.action_space, squash, self._device)
        self._steps_per_graph, self._sequence_length = steps_per_graph, sequence_length
        self._take_steps: Callable[..., tuple[TensorRollout, Start]] = self._steps
        if steps_per_graph:
            # Imported here, as importing numba takes 0.2 s.
            from fastrl.jit import compiled_by_torch

            self._take_steps = compiled_by_torch(self._steps, self._device, fullgraph=True)

    def start(
        self,
        num_envs: int,
        generator: torch.Generator | None = None,
        weights: Weights = None,
    ) -> Start:
        """Begin an episode in n environments.

        Args:
            num_envs: n.
            generator: Source of all randomness; torch's default if None.
            weights: Weights of the policy, whose first state is `TensorPolicy.initial_state`.

        Raises:
            ConfigError: n is below 1.
            EnvError: A `DeviceEnv` has another number of environments, or failed.
        """
        whole("num_envs", num_envs)
        observation, state = self._env.begin(num_envs, generator, self._params)
        leaves = _leaves(observation)
        # Rewards have the dtype of observed numbers, without images and masks.
        dtypes = (leaf.dtype for leaf in leaves.values() if leaf.is_floating_point())
        returns = torch.zeros(num_envs, dtype=next(dtypes, torch.float32), device=self._device)
        return Start(leaves, state, returns, self._initial_state(weights, num_envs))

    @torch.no_grad()
    def _initial_state(self, weights: Weights, num_envs: int) -> Tensor | None:
        """Return the states in which episodes begin; None for a policy without a memory."""
        found = getattr(self._policy, "initial_state", _no_state)(weights, num_envs)
        return found.to(self._device).clone() if found.shape[1] else None

    def get_state(self, start: Start) -> list[Tensor]:
        """Return the tensors of the start of a rollout, copied to the CPU."""
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            found.append(tensor.cpu().clone())
            return tensor

        _mapped(keep, start)
        return found

    def at_state(self, start: Start, state: Sequence[Any]) -> Start:
        """Return the start of a rollout from tensors of `get_state`.

        ``start`` is any start of the same environments, which defines shapes and dtypes.

        Raises:
            StateError: They belong to other environments.
        """
        own = self.get_state(start)
        kinds, found = (
            [(each.shape, each.dtype) for each in tensors if isinstance(each, Tensor)]
            for tensors in (own, state)
        )
        if kinds != found or len(state) != len(own):
            raise StateError(f"the state is not one of {len(own[-1])} '{self._env.spec.id}'")
        rest = iter(state)
        resumed: Start = _mapped(lambda _: next(rest).to(self._device), start)
        return resumed

    def draw_noise(
        self, num_steps: int, num_envs: int, generator: torch.Generator | None = None
    ) -> Noise:
        """Draw all random numbers of a rollout at once.

        Raises:
            ConfigError: There are no steps, or no environments.
        """
        whole("num_steps", num_steps)
        whole("num_envs", num_envs)
        shape = (num_steps, num_envs)
        source = self._device if generator is None else generator.device
        policy = self._policy.draw_noise(shape, generator, source).to(self._device)
        return Noise(policy, self._env.draw_noise(shape, generator, self._device))

    @torch.no_grad()
    def run(self, weights: Weights, start: Start, noise: Noise) -> tuple[TensorRollout, Start]:
        """Return a rollout with one step for each row of noise, and the start of the next."""
        steps, here = [], start
        initial = self._initial_state(weights, noise.env.shape[1])
        if initial is not None and len(noise.env) % (self._sequence_length or len(noise.env)):
            raise EnvError(
                f"sequence_length must divide the length of rollouts, {len(noise.env)}, got "
                f"{self._sequence_length}"
            )
        for part in _parts(noise, self._steps_per_graph):
            taken, here = self._take_steps(weights, here, part, initial)
            if self._steps_per_graph and self._device.type == "cuda":
                # The next replay of the graph overwrites the same memory.
                taken, here = _mapped(torch.clone, taken), _mapped(torch.clone, here)
                torch.compiler.cudagraph_mark_step_begin()
            steps.append(taken)
        done: TensorRollout = _joined(steps)
        last = {leaf: tensor[None] for leaf, tensor in here.observation.items()}
        changes: dict[str, Any] = {"observation": _joined([done.observation, last])}
        if done.params is not None:
            changes["params"] = torch.cat([done.params, self._params_of(here.state)[None]])
        if "value" in done.outputs:
            inputs, _ = split_mask(here.observation, self._mask)
            further = only_given(state=here.policy_state)
            last_value = self._policy.value(weights, inputs, **further)[None]
            value = torch.cat([done.outputs["value"], last_value])
            changes["outputs"] = {**done.outputs, "value": value}
            changes["final_value"] = self._final_value(weights, done)
        if initial is not None:
            changes["policy_state"] = self._segment_states(start, done, initial)
        return done._replace(**changes), here

    def _steps(
        self, weights: Weights, start: Start, noise: Noise, initial: Tensor | None
    ) -> tuple[TensorRollout, Start]:
        """Return some steps, with the ``policy_state`` after each, before a reset."""
        steps, here = [], start
        for policy_noise, env_noise in zip(noise.policy, noise.env, strict=True):
            step, here = self._step(weights, here, Noise(policy_noise, env_noise), initial)
            steps.append(step)
        return _mapped(torch.stack, *steps), here

    def _step(
        self, weights: Weights, here: Start, noise: Noise, initial: Tensor | None
    ) -> tuple[TensorRollout, Start]:
        inputs, mask = split_mask(here.observation, self._mask)
        further = only_given(state=here.policy_state, mask=mask)
        acted = self._policy.act(weights, inputs, noise.policy, **further)
        if not torch.compiler.is_compiling():
            size = 0 if initial is None else initial.shape[1]
            checked_step(self._policy, self._outputs, acted, len(noise.policy), size)
        observation, state, reward, terminated, truncated, info = self._env.step(
            here.state, self._inside(acted.action[""]), noise.env, self._params
        )
        ended = terminated | truncated
        total = here.episode_return + reward
        step = TensorRollout(
            observation=here.observation,
            action=acted.action,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            outputs={name: acted.outputs[name] for name in self._outputs},
            final_value=None,
            final_observation=_leaves(info["final_observation"]),
            extras={name: info[name] for name in self._env.spec.extras},
            episode_return=torch.where(ended, total, 0.0),
            episode_length=torch.where(ended, here.state.time + 1, 0),
            params=self._params_of(here.state),
            policy_state=None if initial is None else acted.state,
        )
        carried = None if initial is None else _reset(cast(Tensor, acted.state), ended, initial)
        return step, Start(_leaves(observation), state, torch.where(ended, 0.0, total), carried)

    def _segment_states(self, start: Start, done: TensorRollout, initial: Tensor) -> Tensor:
        """Return the state before every L-th step, and the first state of the next rollout."""
        assert start.policy_state is not None
        assert done.policy_state is not None
        every = self._sequence_length or len(done.reward)
        ended = (done.terminated | done.truncated)[every - 1 :: every]
        carried = _reset(done.policy_state[every - 1 :: every], ended, initial)
        return torch.cat([start.policy_state[None], carried])

    def _params_of(self, state: Any) -> Any:
        return self._env.info(state).get("params")

    def _final_value(self, weights: Weights, done: TensorRollout) -> Tensor:
        """Return the values of the final observations of truncated episodes, which are few."""
        values = torch.zeros_like(done.outputs["value"])
        index = done.truncated.nonzero(as_tuple=True)
        final = {leaf: tensor[index] for leaf, tensor in done.final_observation.items()}
        inputs, _ = split_mask(final, self._mask)
        # The state after the step of the final observation, before a reset.
        further = only_given(state=None if done.policy_state is None else done.policy_state[index])
        values[index] = self._policy.value(weights, inputs, **further).to(values.dtype)
        return values


def _reset(state: Tensor, ended: Tensor, initial: Tensor) -> Tensor:
    return torch.where(ended[..., None], initial, state)


def _no_state(weights: Weights, num_envs: int) -> Tensor:
    return torch.zeros(num_envs, 0)


def rollout(
    env: TensorEnv[S, P] | DeviceEnv,
    policy: TensorPolicy,
    weights: Weights,
    num_steps: int,
    num_envs: int,
    generator: torch.Generator | None = None,
) -> TensorRollout:
    """Reset n environments and return T steps of each.

    For consecutive rollouts, compiled or with other parameters, see
    `Rollouts`.

    Args:
        env: A tensor environment, with its default parameters, on the device of the generator; or
            a `DeviceEnv`.
        policy: Policy that acts and returns values.
        weights: Weights of the policy.
        num_steps: T.
        num_envs: n.
        generator: Source of all randomness; torch's default if None.

    Raises:
        ConfigError: There are no steps, or no environments.
        EnvError: A `DeviceEnv` has another number of environments, or failed.
    """
    device = torch.device("cpu") if generator is None else generator.device
    params = None
    if not isinstance(env, DeviceEnv):
        params = instance("env", env, TensorEnv).default_params(device=device)
    rollouts = Rollouts(env, policy, params)
    start = rollouts.start(num_envs, generator, weights)
    return rollouts.run(weights, start, rollouts.draw_noise(num_steps, num_envs, generator))[0]


def _leaves(observation: Any) -> dict[str, Tensor]:
    return observation if isinstance(observation, dict) else {"": observation}


def _parts(noise: Noise, steps_per_graph: int) -> Iterator[Noise]:
    """Split a rollout into equal parts, as each length needs its own graph."""
    length = len(noise.env)
    limit = min(length, steps_per_graph or length)
    size = next(size for size in range(limit, 0, -1) if length % size == 0)
    for policy, env in zip(noise.policy.split(size), noise.env.split(size), strict=True):
        yield Noise(policy, env)


def _joined(trees: list[Any]) -> Any:
    return trees[0] if len(trees) == 1 else _mapped(torch.cat, *trees)


def _mapped(function: Callable[..., Tensor], *trees: Any) -> Any:
    """Apply a function to the tensors at the same place in trees of dicts and tuples.

    `torch.stack` and `torch.cat` take these as one list, other functions as arguments.
    """
    first = trees[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function(trees) if function in (torch.stack, torch.cat) else function(*trees)
    if isinstance(first, dict):
        return {key: _mapped(function, *(tree[key] for tree in trees)) for key in first}
    parts = [_mapped(function, *each) for each in zip(*trees, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
