"""Plain data for all packages: the spaces of an environment, and the slots of workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from fastrl.arguments import brief, whole_attributes
from fastrl.errors import ConfigError, FastrlError, SpaceError
from fastrl.spaces import TensorSpec, action_specs, num_choices, observation_specs

ACTION_MASK = "action_mask"
"""Key of the mask of valid actions in a ``Dict`` observation or an info."""
MaskSource = Literal["observation", "info", "method"]
"""Source of masks: `ACTION_MASK` in observations or infos, or the method ``action_masks()``."""
Array = TypeVar("Array", Tensor, NDArray[np.bool_])

LOG_PROB_AND_VALUE: Mapping[str, TensorSpec] = {
    "log_prob": TensorSpec((), torch.float32),
    "value": TensorSpec((), torch.float32),
}
"""The outputs of a policy that declares none."""
_STORED = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64),
)


@dataclass(frozen=True)
class EnvSpec:
    """The spaces and fields of one environment, probed once per run.

    Attributes:
        id: The id of the environment, as the user wrote it.
        observation_space: Observation space of one environment.
        action_space: Action space of one environment.
        max_episode_steps: Time limit in steps, or None.
        episode_info: Names of numbers in the info at the end of an episode, such as
            ``is_success``; ``a/b`` is entry b of the dictionary a.
        running_statistics: Names of wrappers that normalise by running statistics, such as
            ``NormalizeObservation``.
        extras: Further numbers that the environment writes in every step, by name. A `Rollout` has
            each as a field ``[T, B, *shape]``. Only a `BatchedEnv` (see `StepViews`) and a
            `TensorEnv`, whose ``info`` returns them, can declare them.
        mask_source: Source of masks of valid actions; see `action_mask`. None ignores a key
            of that name.
    """

    id: str
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    max_episode_steps: int | None = None
    episode_info: tuple[str, ...] = ()
    running_statistics: tuple[str, ...] = ()
    extras: Mapping[str, TensorSpec] = field(default_factory=dict)
    mask_source: MaskSource | None = "observation"

    @cached_property
    def observation(self) -> dict[str, TensorSpec]:
        """Stored shape and dtype of each observation leaf, by path."""
        specs = observation_specs(self.observation_space)
        if self.action_mask is not None:
            specs[self.action_mask] = TensorSpec((sum(self.choices),), torch.bool)
        return specs

    @cached_property
    def choices(self) -> tuple[int, ...]:
        """Number of options of each ``Discrete``, and of each element of ``MultiDiscrete``.

        A mask has one column for each of them, in this order.
        """
        return num_choices(self.action_space)

    @cached_property
    def action_mask(self) -> str | None:
        """Path of the observation leaf with the mask of valid actions; None without masks.

        This is the key `ACTION_MASK` of a ``Dict`` observation, if actions have discrete leaves.

        Raises:
            SpaceError: The mask does not have one number for each option of `choices`, or the
                observation has nothing else.
        """
        space = self.observation_space
        if self.mask_source is None or not isinstance(space, spaces.Dict) or not self.choices:
            return None
        if ACTION_MASK not in space.spaces:
            return None
        mask, wanted = space.spaces[ACTION_MASK], (sum(self.choices),)
        if mask.shape != wanted:
            raise SpaceError(
                f"'{self.id}' observes the {ACTION_MASK} {brief(mask, 80)}; expected the shape "
                f"{wanted}, one number for each action of {brief(self.action_space, 80)}, or "
                "env.action_mask=off"
            )
        if len(space.spaces) == 1:
            raise SpaceError(f"'{self.id}' observes nothing but its {ACTION_MASK}")
        return ACTION_MASK

    @cached_property
    def input_space(self) -> spaces.Space[Any]:
        """The observation space of networks: without the mask."""
        space = self.observation_space
        if self.action_mask is None or not isinstance(space, spaces.Dict):
            return space
        return spaces.Dict([(k, v) for k, v in space.spaces.items() if k != self.action_mask])

    @cached_property
    def inputs(self) -> dict[str, TensorSpec]:
        """Leaves of ``observation`` that networks read."""
        return {path: spec for path, spec in self.observation.items() if path != self.action_mask}

    def split_mask(
        self, observation: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Tensor | None]:
        """Return the leaves of ``inputs``, and the mask ``[*, choices] bool`` or None.

        Args:
            observation: Per leaf ``[*, *shape]``; neither copied nor changed.
        """
        return split_mask(observation, self.action_mask)

    def has_valid(self, mask: Array) -> Array:
        """Return whether a mask leaves an option for each of `choices`.

        Args:
            mask: ``[*, choices]``, of NumPy or torch.

        Returns:
            ``[*] bool``.
        """
        start = self.choices[0]
        valid: Any = mask[..., :start].any(-1)
        for size in self.choices[1:]:
            valid = valid & mask[..., start : start + size].any(-1)
            start += size
        return cast(Array, valid)

    @cached_property
    def action(self) -> dict[str, TensorSpec]:
        """Stored shape and dtype of each action leaf, by path."""
        return action_specs(self.action_space)


def split_mask(
    observation: Mapping[str, Tensor], path: str | None
) -> tuple[Mapping[str, Tensor], Tensor | None]:
    """Return observations without the mask at ``path``, and the mask as bool; see `EnvSpec`."""
    if path is None:
        return observation, None
    mask = observation[path]
    inputs = {name: leaf for name, leaf in observation.items() if name != path}
    return inputs, mask if mask.dtype == torch.bool else mask != 0


def only_given(**arguments: Tensor | None) -> dict[str, Tensor]:
    """Return the arguments that are not None.

    Policies without a memory or without masks need no parameters ``state`` and ``mask``.
    """
    return {name: argument for name, argument in arguments.items() if argument is not None}


class PolicyStep(NamedTuple):
    """The result of a policy for a batch of observations with the leading axes ``[*]``.

    Attributes:
        action: Per leaf ``[*, *shape]``.
        outputs: By name ``[*, *shape]``: at least the outputs that the policy declares.
        state: ``[*, size]``: the recurrent state for the next step, or None.
    """

    action: dict[str, Tensor]
    outputs: Mapping[str, Tensor]
    state: Tensor | None = None


def outputs_of(policy: object) -> dict[str, TensorSpec]:
    """Return the outputs of a policy beside actions: its attribute ``outputs``.

    For a policy without the attribute they are `LOG_PROB_AND_VALUE`.

    Args:
        policy: A `fastrl.models.PolicyModel`, or a policy of tensor environments.

    Raises:
        ConfigError: ``outputs`` is not a mapping from names to `TensorSpec`, a dtype cannot be
            stored, or ``log_prob`` or ``value`` is not one float32 per row.
    """
    declared, who = getattr(policy, "outputs", LOG_PROB_AND_VALUE), type(policy).__name__
    if not isinstance(declared, Mapping):
        raise ConfigError(f"{who}.outputs must map names to TensorSpec, got {brief(declared)}")
    for name, spec in declared.items():
        if not isinstance(name, str) or not isinstance(spec, TensorSpec):
            raise ConfigError(
                f"{who}.outputs must map names to TensorSpec, got {brief(name)}: {brief(spec)}"
            )
        if spec.dtype not in _STORED:
            raise ConfigError(f"{who}.outputs: '{name}' cannot be stored as {spec.dtype}")
        if spec != LOG_PROB_AND_VALUE.get(name, spec):
            raise ConfigError(f"{who}.outputs: '{name}' must be TensorSpec((), torch.float32)")
    return dict(declared)


def checked_step(
    policy: object,
    outputs: Mapping[str, TensorSpec],
    step: object,
    num_rows: int,
    state_size: int = 0,
) -> PolicyStep:
    """Return the result of a policy's ``act`` after a check.

    Args:
        policy: The policy, for errors.
        outputs: Its declared outputs, see `outputs_of`.
        step: The result of ``act``.
        num_rows: The leading axis, n.
        state_size: Size of the state of a policy with a memory.

    Raises:
        FastrlError: It is not a `PolicyStep`, its action is not a mapping, or an output or the
            next state is missing or has another shape.
    """
    if isinstance(step, PolicyStep):
        if not isinstance(step.action, Mapping):
            raise FastrlError(
                f"{type(policy).__name__}.act: the action must map leaf paths to tensors, such as "
                f"{{'': tensor}}, got a {type(step.action).__name__}"
            )
        for name, spec in outputs.items():
            found = step.outputs.get(name)
            # A copy into a row would broadcast a tensor that is too small.
            if found is None or found.shape != (num_rows, *spec.shape):
                break
        else:
            if state_size:
                check_state(policy, step.state, num_rows, state_size)
            return step
    expected = ", ".join(f"{name} {[num_rows, *spec.shape]}" for name, spec in outputs.items())
    got = f"a {type(step).__name__}"
    if isinstance(step, PolicyStep):
        shapes = (f"{name} {list(tensor.shape)}" for name, tensor in step.outputs.items())
        got = f"the outputs {', '.join(shapes) or 'none'}"
    raise FastrlError(
        f"{type(policy).__name__}.act must return PolicyStep(action, outputs) with the outputs "
        f"{expected or 'none'}, but returned {got}"
    )


def check_state(policy: object, state: object, num_rows: int, state_size: int) -> None:
    """Check the next state that a policy with a memory has returned.

    Raises:
        FastrlError: The state is not ``[num_rows, state_size]``.
    """
    shape = tuple(state.shape) if isinstance(state, Tensor) else None
    if shape != (num_rows, state_size):
        raise FastrlError(
            f"{type(policy).__name__} has a memory: it must return PolicyStep(action, outputs, "
            f"state) with the state {[num_rows, state_size]}, but returned "
            f"{'no state' if shape is None else f'a state {list(shape)}'}"
        )


@dataclass(frozen=True)
class Topology:
    """The layout of workers: n envs in each of N env workers, M model workers, G groups.

    Slots (columns of the table) are ordered by model worker, then group, then env worker. So the
    rows of one inference batch are contiguous, and so are those that an env worker steps at once.

    With ``num_model_workers == 0`` each env worker runs the policy on its own envs.

    Attributes:
        envs_per_worker: n.
        num_env_workers: N.
        num_model_workers: M.
        groups: G, parts of a worker's envs that are stepped in turn.
        by_slot: If True, seeds and noise depend only on the slot, so they are the same for every N.
            Otherwise seeds follow the order of env workers, and each policy runner draws its noise.
        first_env: Index of the first environment in the run, if several samplers share a run.
        run_envs: Number of environments of the whole run, whose noise is divided by slot as in one
            sampler; None for streams of this sampler, which depend on ``first_env``.
    """

    envs_per_worker: int
    num_env_workers: int
    num_model_workers: int = 0
    groups: int = 1
    by_slot: bool = False
    first_env: int = 0
    run_envs: int | None = None

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ConfigError: A size is out of range, or n is not divisible by the groups.
        """
        whole_attributes(self, ("envs_per_worker", "num_env_workers", "groups"))
        whole_attributes(self, ("num_model_workers", "first_env"), at_least=0)
        if not 0 <= self.num_model_workers <= self.num_env_workers:
            raise ConfigError(
                f"num_model_workers must be between 0 and num_env_workers "
                f"({self.num_env_workers}), got {self.num_model_workers}"
            )
        if self.envs_per_worker % self.groups:
            raise ConfigError(
                f"envs_per_worker must be divisible by groups, "
                f"got {self.envs_per_worker} and {self.groups}"
            )

    @property
    def sizes(self) -> dict[str, int]:
        """n, N, M and G by the names of their configuration keys."""
        names = ("envs_per_worker", "num_env_workers", "num_model_workers", "groups")
        return {name: getattr(self, name) for name in names}

    @property
    def num_envs(self) -> int:
        """Number of slots, B = N · n."""
        return self.num_env_workers * self.envs_per_worker

    @property
    def envs_per_group(self) -> int:
        """Number of environments that one env worker steps between two requests."""
        return self.envs_per_worker // self.groups

    @property
    def num_policies(self) -> int:
        """Number of processes that run the policy: M, or N if M is 0."""
        return self.num_model_workers or self.num_env_workers

    def policy_of(self, env_worker: int) -> int:
        """Return the policy runner of an env worker (itself if M is 0)."""
        return env_worker * self.num_policies // self.num_env_workers

    def env_workers_of(self, policy: int) -> range:
        """Return the env workers of a policy runner: contiguous, equal in number up to one."""
        bounds = [-(-i * self.num_env_workers // self.num_policies) for i in (policy, policy + 1)]
        return range(*bounds)

    def policy_slots(self, policy: int) -> slice:
        """Return all slots that a policy runner writes."""
        workers = self.env_workers_of(policy)
        return slice(workers.start * self.envs_per_worker, workers.stop * self.envs_per_worker)

    def slots(self, env_worker: int, group: int) -> slice:
        """Return the slots of one group of one env worker."""
        workers = self.env_workers_of(self.policy_of(env_worker))
        start = (
            workers.start * self.envs_per_worker
            + group * len(workers) * self.envs_per_group
            + (env_worker - workers.start) * self.envs_per_group
        )
        return slice(start, start + self.envs_per_group)

    def group_slots(self, policy: int, group: int) -> slice:
        """Return the contiguous slots of one group of all env workers of a policy runner."""
        workers = self.env_workers_of(policy)
        first, last = self.slots(workers[0], group), self.slots(workers[-1], group)
        return slice(first.start, last.stop)

    @property
    def shares_noise(self) -> bool:
        """Whether the noise of the run is divided among several samplers by slot."""
        return self.by_slot and self.run_envs is not None

    def noise_shares(self) -> list[slice]:
        """Return the slots of each random stream of noise; together they are all slots.

        If the noise of a run is divided, they are all slots of the run, counted from the first
        one of this sampler.
        """
        if not self.by_slot:
            return [self.policy_slots(policy) for policy in range(self.num_policies)]
        total, first = self.num_envs, 0
        if self.run_envs is not None:
            total, first = self.run_envs, self.first_env
        # In halves, so that each of two workers draws only its own noise.
        shares = 1 if total % 2 else 2
        size = total // shares
        return [slice(share * size - first, (share + 1) * size - first) for share in range(shares)]

    def env_index(self, env_worker: int, group: int) -> range:
        """Return the indices of a group's envs in the run, which determine their seeds."""
        if self.by_slot:
            start = self.slots(env_worker, group).start
        else:
            start = env_worker * self.envs_per_worker + group * self.envs_per_group
        return range(self.first_env + start, self.first_env + start + self.envs_per_group)

    def all_groups(self) -> Iterator[tuple[int, int]]:
        """Yield every (env worker, group)."""
        for env_worker in range(self.num_env_workers):
            for group in range(self.groups):
                yield env_worker, group
