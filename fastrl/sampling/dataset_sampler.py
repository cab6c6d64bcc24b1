"""A sampler of demonstrations instead of environments, for offline algorithms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastrl.arguments import instance
from fastrl.datasets import HELD_OUT, PADDING, Demonstrations
from fastrl.datasets.streams import rollout_fields
from fastrl.envs.calls import EnvCall
from fastrl.envs.state import State
from fastrl.errors import ConfigError, EnvError
from fastrl.sampling.sampler import CountingSampler
from fastrl.shared.rollouts import Episodes, Rollout
from fastrl.workers.handoff import CounterBoard
from fastrl.workers.plan import SamplingPlan

_NO_EPISODES = Episodes(
    np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
)


class DatasetSampler(CountingSampler):
    """Returns all demonstrations in every rollout, so that an update is an epoch.

    A rollout has one slot and a row for each step, T = N and B = 1. For a policy with a memory it
    has several slots of consecutive whole episodes; see `fastrl.datasets.streams.rollout_fields`.
    It contains no states of the policy. ``episodes`` is empty, since none was played. Nothing is
    copied between rollouts, and there is no state to resume.

    Args:
        plan: The environment and the policy.
        demonstrations: Demonstrations of the same environment.
        held_out: Share of the episodes that the field ``held_out`` marks, drawn by the run's seed:
            at least one of two or more, and never all. They do not count as steps.
        sequence_length: L, of which T is a multiple, for a policy with a memory; None without.

    Raises:
        ConfigError: The demonstrations belong to another environment.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        demonstrations: Demonstrations,
        held_out: float = 0.0,
        sequence_length: int | None = None,
    ) -> None:
        instance("demonstrations", demonstrations, Demonstrations)
        if demonstrations.env_spec != plan.env_spec:
            raise ConfigError("the demonstrations are not from the plan's environment")
        super().__init__(plan, CounterBoard(["dataset"]))
        self._version = 0
        episodes = _drawn_episodes(len(demonstrations.lengths), held_out, plan.seed)
        held = torch.isin(demonstrations.episode, episodes)
        marked = replace(demonstrations, fields={HELD_OUT: held})
        self._fields = rollout_fields(marked, sequence_length)
        if PADDING in self._fields:
            self._fields[HELD_OUT] &= ~self._fields[PADDING]
        self._counted_steps = int((~held).sum())
        self.rollout_length = len(self._fields["reward"])

    def start(self) -> None:
        """Do nothing; see `Sampler`."""
        self._check_open()

    def collect(self) -> Rollout:
        """Return all demonstrations; see `Sampler`."""
        self._check_open()
        index, self._next_rollout = self._next_rollout, self._next_rollout + 1
        shape = self._fields["reward"].shape
        return Rollout(
            self._fields,
            policy_version=torch.tensor([[self._version]]).expand(shape),
            episodes=_NO_EPISODES,
            index=index,
            restarted=torch.ones(shape[1], dtype=torch.bool),
            counted_steps=self._counted_steps,
        )

    def get_state(self) -> State | None:
        """Return None: every rollout is the same; see `Sampler`."""
        self._check_open()
        return None

    def set_state(self, state: State) -> None:
        """Do nothing; see `Sampler`."""

    def call_envs(self, calls: Sequence[EnvCall]) -> None:
        """Raise an `EnvError` for any call, as there are no environments; see `Sampler`."""
        if calls:
            raise EnvError("demonstrations come from a dataset: there are no environments to call")

    def _publish(self, state_dict: Mapping[str, Tensor], version: int | None = None) -> int:
        self._version = self._version + 1 if version is None else version
        return self._version


def _drawn_episodes(num_episodes: int, share: float, seed: int) -> Tensor:
    """Return the held-out episodes ``[*] int64``."""
    at_least = 1 if share and num_episodes > 1 else 0
    number = min(max(at_least, round(share * num_episodes)), num_episodes - 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(num_episodes, generator=generator)[:number]
