"""Rollouts of several samplers side by side, as one rollout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastrl.shared.rollouts import Episodes, rollout_fields
from fastrl.shared.table import Layout
from fastrl.workers.plan import SamplingPlan


class JoinedBank:
    """A rollout of several samplers in the memory of the learner.

    Attributes:
        num_slots: B, of all of them.
        fields: See `Rollout`.

    Args:
        plan: Has the schema.
        num_slots: See the attribute.
    """

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


def joined_episodes(parts: Sequence[Episodes], starts: NDArray[np.int64]) -> Episodes:
    """Return the episodes of rollouts that lie side by side, the first slot of each at a start."""
    joined = Episodes(
        returns=np.concatenate([part.returns for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        end_step=np.concatenate([part.end_step for part in parts]),
        slot=np.concatenate(
            [part.slot + start for part, start in zip(parts, starts, strict=False)]
        ),
        info={name: np.concatenate([part.info[name] for part in parts]) for name in parts[0].info},
    )
    order = np.lexsort((joined.slot, joined.end_step))
    return Episodes(
        joined.returns[order],
        joined.lengths[order],
        joined.end_step[order],
        joined.slot[order],
        {name: numbers[order] for name, numbers in joined.info.items()},
    )
