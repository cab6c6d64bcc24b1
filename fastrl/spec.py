"""Pure data that every room agrees on: what an environment looks like, and who steps how many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gymnasium import spaces

from fastrl.arguments import whole_attributes
from fastrl.errors import ConfigError
from fastrl.spaces import TensorSpec, action_specs, observation_specs


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
    """

    id: str
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    max_episode_steps: int | None = None
    episode_info: tuple[str, ...] = ()
    running_statistics: tuple[str, ...] = ()

    @cached_property
    def observation(self) -> dict[str, TensorSpec]:
        """Stored shape and dtype of each observation leaf, by path."""
        return observation_specs(self.observation_space)

    @cached_property
    def action(self) -> dict[str, TensorSpec]:
        """Stored shape and dtype of each action leaf, by path."""
        return action_specs(self.action_space)


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
