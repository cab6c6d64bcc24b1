"""Steps the environments of one env worker; the same code in a process and in `SerialSampler`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastrl.envs.batched_env import Rows, StepViews
from fastrl.shared.table import NUM_BANKS, Table
from fastrl.workers.plan import SamplingPlan


class EnvStepper:
    """The n environments of one env worker, in groups, on their slots of the table.

    Writes ``observation``, ``final_observation``, ``reward``, ``terminated`` and ``truncated`` of
    its own slots and nothing else.
    """

    def __init__(self, plan: SamplingPlan, table: Table, env_worker: int) -> None:
        topology = plan.topology
        self._plan, self._table, self._env_worker = plan, table, env_worker
        self._slots = [topology.slots(env_worker, group) for group in range(topology.groups)]
        self._envs = [plan.build_env(topology.envs_per_group) for _ in range(topology.groups)]
        self._views = [
            [self._bank_views(bank, slots) for slots in self._slots] for bank in range(NUM_BANKS)
        ]

    def begin(self, rollout: int) -> None:
        """Write the first observations of a rollout: those that ended the one before.

        Before the first rollout every environment starts an episode.
        """
        bank = self._table.banks[rollout % NUM_BANKS]
        if rollout == 0:
            for group, env in enumerate(self._envs):
                seeds = self._plan.env_seeds(self._env_worker, group)
                env.reset(seeds, _rows(bank.observation, 0, self._slots[group]))
            return
        previous = self._table.banks[(rollout - 1) % NUM_BANKS].observation
        for slots in self._slots:
            for leaf, tensor in bank.observation.items():
                tensor[0, slots] = previous[leaf][-1, slots]

    def step(self, bank: int, t: int, group: int) -> int:
        """Step one group with the actions at ``t``; return how many episodes ended."""
        views = self._views[bank][group][t]
        self._envs[group].step(views)
        return int(np.count_nonzero(views.terminated)) + int(np.count_nonzero(views.truncated))

    def close(self) -> None:
        """Close all environments."""
        for env in self._envs:
            env.close()

    def _bank_views(self, index: int, slots: slice) -> list[StepViews]:
        """Return the views of every step of a bank, made once: slicing costs 0.2 µs each time."""
        bank = self._table.banks[index]
        reward, terminated, truncated = (
            tensor.numpy() for tensor in (bank.reward, bank.terminated, bank.truncated)
        )
        final = _rows(bank.final_observation, None, slots)
        info = None if bank.episode_info is None else bank.episode_info.numpy()
        return [
            StepViews(
                action=_rows(bank.action, t, slots, writable=False),
                observation=_rows(bank.observation, t + 1, slots),
                reward=reward[t, slots],
                terminated=terminated[t, slots],
                truncated=truncated[t, slots],
                final_observation=final,
                episode_info=None if info is None else info[t, slots],
            )
            for t in range(self._table.rollout_length)
        ]


def _rows(
    leaves: Mapping[str, Tensor], t: int | None, slots: slice, *, writable: bool = True
) -> Rows:
    rows: list[NDArray[Any]] = []
    for tensor in leaves.values():
        row = tensor.numpy()[slots] if t is None else tensor.numpy()[t, slots]
        row.setflags(write=writable)
        rows.append(row)
    return tuple(rows)
