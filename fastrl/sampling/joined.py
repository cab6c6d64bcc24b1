"""Rollouts of several samplers side by side, as one rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fastrl.shared.rollouts import Episodes, Rollout, rollout_fields
from fastrl.shared.table import NUM_BANKS, Layout
from fastrl.workers.plan import SamplingPlan


@dataclass(frozen=True)
class SentRollout:
    """A rollout of one sampler on its way to a learner that joins several.

    Attributes:
        memory: ``[num_bytes] uint8``: a bank, see `fastrl.shared.table.Layout`.
        episodes: See `Rollout`.
        restarted: See `Rollout`.
    """

    memory: NDArray[np.uint8]
    episodes: Episodes
    restarted: NDArray[np.bool_]


class JoinedRollouts:
    """Copies rollouts of several samplers into the memory of the learner, two banks in turn.

    Args:
        plan: Has the schema.
    """

    def __init__(self, plan: SamplingPlan) -> None:
        self._plan = plan
        self._banks: dict[int, _JoinedBank] = {}

    def join(self, index: int, parts: Sequence[tuple[SentRollout, range]]) -> Rollout:
        """Return one rollout.

        Args:
            index: See `Rollout`.
            parts: The rollouts, each with the slots of the run that it is from.
        """
        sizes = [len(slots) for _, slots in parts]
        bank = self._banks.get(index % NUM_BANKS)
        if bank is None or bank.num_slots != sum(sizes):
            bank = self._banks[index % NUM_BANKS] = _JoinedBank(self._plan, sum(sizes))
        bank.fill([sent.memory for sent, _ in parts], sizes)
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        return Rollout(
            bank.fields,
            episodes=Episodes.joined([sent.episodes for sent, _ in parts], starts),
            index=index,
            restarted=torch.from_numpy(np.concatenate([sent.restarted for sent, _ in parts])),
            slots=torch.cat([torch.arange(slots.start, slots.stop) for _, slots in parts]),
        )


class _JoinedBank:
    """A bank of ``num_slots``, of all samplers; ``fields`` are those of a `Rollout`."""

    def __init__(self, plan: SamplingPlan, num_slots: int) -> None:
        self._plan, self.num_slots = plan, num_slots
        layout = self._layout(num_slots)
        self._memory = np.empty(layout.num_bytes, np.uint8)
        self._rows = list(layout.rows(self._memory))
        self.fields = rollout_fields(plan.schema, layout.bank(self._memory))

    def fill(self, sent: Sequence[NDArray[np.uint8]], sizes: Sequence[int]) -> None:
        """Copy banks side by side.

        Args:
            sent: Of each sampler ``[num_bytes]``, see `Layout`.
            sizes: B of each sampler.
        """
        if len(sent) == 1:
            self._memory[:] = sent[0]
            return
        parts = [self._layout(size).rows(memory) for size, memory in zip(sizes, sent, strict=True)]
        for target, *sources in zip(self._rows, *parts, strict=True):
            start = 0
            for size, source in zip(sizes, sources, strict=True):
                target[:, start : start + size] = source
                start += size

    def _layout(self, num_slots: int) -> Layout:
        return Layout(self._plan.schema, self._plan.rollout_length, num_slots)
