"""Pure data that every room agrees on: what an environment looks like, and who steps how many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor

from fastrl.arguments import brief, whole_attributes
from fastrl.errors import ConfigError, FastrlError
from fastrl.spaces import TensorSpec, action_specs, observation_specs

LOG_PROB_AND_VALUE: Mapping[str, TensorSpec] = {
    "log_prob": TensorSpec((), torch.float32),
    "value": TensorSpec((), torch.float32),
}
"""What a policy puts out unless it declares something else."""
_STORED = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64),
)


@dataclass(frozen=True)
class EnvSpec:
    """What one environment observes and accepts, probed once per run.

    Attributes:
        id: The environment's id as the user gave it.
        observation_space: Space of one environment's observation.
        action_space: Space of one environment's action.
        max_episode_steps: Time limit in steps, None where there is none.
        episode_info: Names of the figures that it tells of an episode that has ended, such as
            ``is_success``; ``a/b`` names entry b of the dictionary a in its info.
        running_statistics: Names of its wrappers that normalise by statistics of their own, such
            as ``NormalizeObservation``.
        extras: Further numbers that it writes in every step, by name: a `Rollout` holds each of
            them as a field ``[T, B, *shape]``. Only a `BatchedEnv` can declare them, see
            `StepViews`, and a `TensorEnv`, whose ``info`` returns them.
    """

    id: str
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    max_episode_steps: int | None = None
    episode_info: tuple[str, ...] = ()
    running_statistics: tuple[str, ...] = ()
    extras: Mapping[str, TensorSpec] = field(default_factory=dict)

    @cached_property
    def observation(self) -> dict[str, TensorSpec]:
        """Stored shape and dtype of each observation leaf, by path."""
        return observation_specs(self.observation_space)

    @cached_property
    def action(self) -> dict[str, TensorSpec]:
        """Stored shape and dtype of each action leaf, by path."""
        return action_specs(self.action_space)


class PolicyStep(NamedTuple):
    """What a policy returns for a batch of observations with the leading axes ``[*]``.

    Attributes:
        action: Per leaf ``[*, *shape]``.
        outputs: By name ``[*, *shape]``: at least the outputs that the policy declares.
        state: ``[*, size]``: what a policy with a memory carries to the next step; None for a
            policy without one.
    """

    action: dict[str, Tensor]
    outputs: Mapping[str, Tensor]
    state: Tensor | None = None


def outputs_of(policy: object) -> dict[str, TensorSpec]:
    """Return what a policy puts out beside actions: its attribute ``outputs``.

    A policy without the attribute puts out `LOG_PROB_AND_VALUE`.

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
    policy: object, outputs: Mapping[str, TensorSpec], step: object, num_rows: int
) -> PolicyStep:
    """Return what a policy's ``act`` has returned.

    Args:
        policy: Is named in the error.
        outputs: What it declares, see `outputs_of`.
        step: What ``act`` has returned.
        num_rows: Leading axis, n.

    Raises:
        FastrlError: It is not a `PolicyStep`, or an output is missing or has another shape.
    """
    if isinstance(step, PolicyStep):
        for name, spec in outputs.items():
            found = step.outputs.get(name)
            # A copy into a row would repeat the numbers of too small a tensor.
            if found is None or found.shape != (num_rows, *spec.shape):
                break
        else:
            return step
    expected = ", ".join(f"{name} {[num_rows, *spec.shape]}" for name, spec in outputs.items())
    told = f"a {type(step).__name__}"
    if isinstance(step, PolicyStep):
        shapes = (f"{name} {list(tensor.shape)}" for name, tensor in step.outputs.items())
        told = f"the outputs {', '.join(shapes) or 'none'}"
    raise FastrlError(
        f"{type(policy).__name__}.act must return PolicyStep(action, outputs) with the outputs "
        f"{expected or 'none'}, but returned {told}"
    )


@dataclass(frozen=True)
class Topology:
    """Who steps and who infers: n envs in each of N env workers, M model workers, G groups.

    Slots (columns of the table) are ordered by model worker, then group, then env worker, so
    that what one model worker infers at once is one contiguous slab, and what one env worker
    steps at once is one contiguous part of it.

    With ``num_model_workers == 0`` each env worker runs the policy on its own envs.
    """

    envs_per_worker: int
    num_env_workers: int
    num_model_workers: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be laid out.

        Raises:
            ConfigError: A size is out of range, or n is not divisible by the groups.
        """
        whole_attributes(self, ("envs_per_worker", "num_env_workers", "groups"))
        whole_attributes(self, ("num_model_workers",), at_least=0)
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
    def num_envs(self) -> int:
        """B, the number of slots: N · n."""
        return self.num_env_workers * self.envs_per_worker

    @property
    def envs_per_group(self) -> int:
        """Environments that one env worker steps between two hand-overs."""
        return self.envs_per_worker // self.groups

    @property
    def num_policies(self) -> int:
        """Processes that run the policy: M, or N where M is 0."""
        return self.num_model_workers or self.num_env_workers

    def policy_of(self, env_worker: int) -> int:
        """Return which policy runner serves an env worker (itself where M is 0)."""
        return env_worker * self.num_policies // self.num_env_workers

    def env_workers_of(self, policy: int) -> range:
        """Return the env workers that a policy runner serves: contiguous, sizes within one."""
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

    def env_index(self, env_worker: int, group: int) -> range:
        """Return the run-wide indices of a group's envs; seeds hang on these, not on slots."""
        start = env_worker * self.envs_per_worker + group * self.envs_per_group
        return range(start, start + self.envs_per_group)

    def all_groups(self) -> Iterator[tuple[int, int]]:
        """Yield every (env worker, group)."""
        for env_worker in range(self.num_env_workers):
            for group in range(self.groups):
                yield env_worker, group
