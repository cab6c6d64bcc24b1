"""Whole rollouts of a tensor environment in one call, with the policy inside.

Nothing leaves the device: T steps of n environments are one function of weights, states and noise,
which `torch.compile` makes a graph of, so that Python is out of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from gymnasium import spaces
from torch import Tensor

from fastrl.envs.state import StateError
from fastrl.envs.tensor.base import Limited, TensorEnv, Timed
from fastrl.envs.tensor.policy import TensorPolicy, Weights
from fastrl.errors import ConfigError
from fastrl.spec import checked_step, outputs_of

S = TypeVar("S", bound=Timed)
P = TypeVar("P", bound=Limited)


class TensorRollout(NamedTuple):
    """T steps of n environments.

    Attributes:
        observation: By leaf ``[T+1, n, *shape]``.
        action: By leaf ``[T, n, *shape]``, as the policy sampled them.
        reward: ``[T, n]``.
        terminated: ``[T, n]`` bool.
        truncated: ``[T, n]`` bool.
        outputs: What the policy puts out, by name ``[T, n, *shape]``, but ``value`` ``[T+1, n]``.
        final_value: ``[T, n]``: value of the final observation where truncated, else 0; None where
            the policy has no value.
        final_observation: By leaf ``[T, n, *shape]``: the last observation of the episode that
            ended; other rows hold arbitrary numbers.
        extras: What the environment declares, see `EnvSpec.extras`, by name ``[T, n, *shape]``.
        episode_return: ``[T, n]``: undiscounted return of the episode that ended, else 0.
        episode_length: ``[T, n]`` int32: its length in steps, else 0.
        params: ``[T+1, n, R]``: the randomised parameters; None where there are none.
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


class Start(NamedTuple):
    """Where a rollout begins: first observations, their states, and rewards since each began.

    Attributes:
        observation: By leaf ``[n, *shape]``.
        state: States of the environments.
        episode_return: ``[n]``: rewards of the episode so far.
    """

    observation: dict[str, Tensor]
    state: Any
    episode_return: Tensor


class Noise(NamedTuple):
    """All random numbers of a rollout.

    Attributes:
        policy: ``[T, n, …]``.
        env: ``[T, n, noise_size]``.
    """

    policy: Tensor
    env: Tensor


class _Steps(NamedTuple):
    """What some steps add to a rollout; leading axis T."""

    observation: dict[str, Tensor]
    params: Tensor | None
    action: dict[str, Tensor]
    outputs: dict[str, Tensor]
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_observation: dict[str, Tensor]
    extras: dict[str, Tensor]
    episode_return: Tensor
    episode_length: Tensor


class Rollouts(Generic[S, P]):
    """Makes rollouts of one environment and one policy, each going on where the last ended."""

    def __init__(
        self,
        env: TensorEnv[S, P],
        policy: TensorPolicy,
        params: P,
        *,
        squash: bool = False,
        steps_per_graph: int = 0,
    ) -> None:
        """Prepare; what is compiled is so on the first call of each shape.

        Args:
            env: The environment.
            policy: Acts and values.
            params: Parameters of the environment, on the device where all is to happen.
            squash: Map samples for a ``Box`` into its bounds by tanh, rather than clip them.
            steps_per_graph: How many steps `torch.compile` makes one graph of, at most; on a GPU
                that is a CUDA graph, on a CPU it needs a C++ compiler. More take longer to
                compile. 0 runs every operation by itself.

        Raises:
            EnvError: A parameter has an impossible value.
        """
        env = env.fitted(params)
        self._env, self._policy, self._params = env, policy, params
        self._outputs = outputs_of(policy)
        self._device = params.max_episode_steps.device
        self._inside = _bounding(env.spec.action_space, squash, self._device)
        self._steps_per_graph = steps_per_graph
        self._take_steps: Callable[..., tuple[_Steps, Start]] = self._steps
        if steps_per_graph:
            # Imported here, as numba takes a fifth of a second.
            from fastrl.compiled import compiled_by_torch

            mode = "reduce-overhead" if self._device.type == "cuda" else "default"
            self._take_steps = compiled_by_torch(self._steps, fullgraph=True, mode=mode)

    def start(self, num_envs: int, generator: torch.Generator | None = None) -> Start:
        """Begin an episode in n environments.

        Raises:
            ConfigError: n is below 1.
        """
        _require_some("num_envs", num_envs)
        noise = self._env.draw_noise((num_envs,), generator, self._device)
        observation, state = self._env.reset(noise, self._params)
        leaves = _leaves(observation)
        first = next(iter(leaves.values()))
        return Start(leaves, state, torch.zeros(num_envs, dtype=first.dtype, device=self._device))

    def get_state(self, start: Start) -> list[Tensor]:
        """Return the tensors of where a rollout begins, copied to the CPU."""
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            found.append(tensor.cpu().clone())
            return tensor

        _mapped(keep, start)
        return found

    def at_state(self, start: Start, state: Sequence[Any]) -> Start:
        """Return where a rollout begins whose tensors `get_state` returned.

        Args:
            start: Of the same environments; says shapes and dtypes, and is left alone.
            state: The tensors.

        Raises:
            StateError: They are those of other environments.
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
        _require_some("num_steps", num_steps)
        _require_some("num_envs", num_envs)
        shape = (num_steps, num_envs)
        source = self._device if generator is None else generator.device
        policy = self._policy.draw_noise(shape, generator, source).to(self._device)
        return Noise(policy, self._env.draw_noise(shape, generator, self._device))

    @torch.no_grad()
    def run(self, weights: Weights, start: Start, noise: Noise) -> tuple[TensorRollout, Start]:
        """Return a rollout of as many steps as there is noise for, and where the next begins.

        Args:
            weights: Of the policy.
            start: Where to begin.
            noise: All random numbers of the rollout.
        """
        steps, here = [], start
        for part in _parts(noise, self._steps_per_graph):
            taken, here = self._take_steps(weights, here, part)
            if self._steps_per_graph and self._device.type == "cuda":
                # The next replay of the graph writes where this one wrote.
                taken, here = _mapped(torch.clone, taken), _mapped(torch.clone, here)
                torch.compiler.cudagraph_mark_step_begin()
            steps.append(taken)
        done: _Steps = _joined(steps)
        last = {leaf: tensor[None] for leaf, tensor in here.observation.items()}
        params = None
        if done.params is not None:
            params = torch.cat([done.params, self._params_of(here.state)[None]])
        outputs, final_value = dict(done.outputs), None
        if "value" in outputs:
            last_value = self._policy.value(weights, here.observation)
            outputs["value"] = torch.cat([done.outputs["value"], last_value[None]])
            final_value = self._final_value(weights, done)
        return TensorRollout(
            observation=_joined([done.observation, last]),
            action=done.action,
            reward=done.reward,
            terminated=done.terminated,
            truncated=done.truncated,
            outputs=outputs,
            final_value=final_value,
            final_observation=done.final_observation,
            extras=done.extras,
            episode_return=done.episode_return,
            episode_length=done.episode_length,
            params=params,
        ), here

    def _steps(self, weights: Weights, start: Start, noise: Noise) -> tuple[_Steps, Start]:
        steps, here = [], start
        for policy_noise, env_noise in zip(noise.policy, noise.env, strict=True):
            step, here = self._step(weights, here, Noise(policy_noise, env_noise))
            steps.append(step)
        return _mapped(torch.stack, *steps), here

    def _step(self, weights: Weights, here: Start, noise: Noise) -> tuple[_Steps, Start]:
        acted = self._policy.act(weights, here.observation, noise.policy)
        if not torch.compiler.is_compiling():
            checked_step(self._policy, self._outputs, acted, len(noise.policy))
        observation, state, reward, terminated, truncated, info = self._env.step(
            here.state, self._inside(acted.action[""]), noise.env, self._params
        )
        ended = terminated | truncated
        total = here.episode_return + reward
        step = _Steps(
            observation=here.observation,
            params=self._params_of(here.state),
            action=acted.action,
            outputs={name: acted.outputs[name] for name in self._outputs},
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_observation=_leaves(info["final_observation"]),
            extras={name: info[name] for name in self._env.spec.extras},
            episode_return=torch.where(ended, total, 0.0),
            episode_length=torch.where(ended, here.state.time + 1, 0),
        )
        return step, Start(_leaves(observation), state, torch.where(ended, 0.0, total))

    def _params_of(self, state: Any) -> Any:  # noqa: ANN401
        return self._env.info(state).get("params")

    def _final_value(self, weights: Weights, done: _Steps) -> Tensor:
        """Return the values of the final observations where truncated, which are few."""
        values = torch.zeros_like(done.outputs["value"])
        index = done.truncated.nonzero(as_tuple=True)
        final = {leaf: tensor[index] for leaf, tensor in done.final_observation.items()}
        values[index] = self._policy.value(weights, final).to(values.dtype)
        return values


def rollout(
    env: TensorEnv[S, P],
    policy: TensorPolicy,
    weights: Weights,
    num_steps: int,
    num_envs: int,
    generator: torch.Generator | None = None,
) -> TensorRollout:
    """Return T steps of n environments that begin their episodes here.

    For rollouts that go on where the last ended, compiled or with other parameters, see
    `Rollouts`.

    Args:
        env: The environment, with its default parameters, where the generator is.
        policy: Acts and values.
        weights: Of the policy.
        num_steps: T.
        num_envs: n.
        generator: Source of all randomness; torch's default if None.

    Raises:
        ConfigError: There are no steps, or no environments.
    """
    device = torch.device("cpu") if generator is None else generator.device
    rollouts = Rollouts(env, policy, env.default_params(device=device))
    start = rollouts.start(num_envs, generator)
    return rollouts.run(weights, start, rollouts.draw_noise(num_steps, num_envs, generator))[0]


def _require_some(name: str, count: int) -> None:
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, got {count!r}")


def _leaves(observation: Any) -> dict[str, Tensor]:  # noqa: ANN401
    return observation if isinstance(observation, dict) else {"": observation}


def _bounding(
    space: spaces.Space[Any], squash: bool, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return what maps samples to actions; `fastrl.envs.actions` does it for single processes."""
    if not isinstance(space, spaces.Box):
        return lambda action: action
    low, high = (torch.from_numpy(bound).to(device) for bound in (space.low, space.high))
    if squash:
        return lambda action: low + (high - low) * (torch.tanh(action) + 1) / 2
    return lambda action: torch.clamp(action, low, high)


def _parts(noise: Noise, steps_per_graph: int) -> Iterator[Noise]:
    """Split a rollout into equal parts, as a part of another length would be another graph."""
    length = len(noise.env)
    limit = min(length, steps_per_graph or length)
    size = next(size for size in range(limit, 0, -1) if length % size == 0)
    for policy, env in zip(noise.policy.split(size), noise.env.split(size), strict=True):
        yield Noise(policy, env)


def _joined(trees: list[Any]) -> Any:  # noqa: ANN401
    return trees[0] if len(trees) == 1 else _mapped(torch.cat, *trees)


def _mapped(function: Callable[..., Tensor], *trees: Any) -> Any:  # noqa: ANN401
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
