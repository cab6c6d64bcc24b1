"""Minibatches of all ranks: which rows are this rank's, and how gradients and statistics join."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrl.learning.algorithm import (
    NO_BATCH,
    Algorithm,
    Batch,
    Minibatch,
    Scheduled,
    Sequences,
    segment_rows,
)
from fastrl.learning.gradients import FlatParameters, GradientEngine
from fastrl.learning.ranks import Ranks
from fastrl.models.networks import RunningNormalizer


class RankedEngine(GradientEngine):
    """Computes the gradient of minibatches whose rows belong to several ranks.

    Every rank draws the same minibatches from `run_batch`, and computes the loss of the rows in its
    own slots by another engine. The total, the metrics and the gradient are the means of theirs,
    weighted by rows: those of one rank with all slots, if the loss is a mean over rows.
    `Algorithm.whole` sees all rows; the fields that it reads are gathered once per rollout.

    Args:
        engine: Computes this rank's share.
        ranks: All ranks, which have equally many slots.
        algorithm: Its loss.
        parameters: Where gradients go.
        waits: Whether metrics are needed before `backward`; otherwise they are final after it.
    """

    def __init__(
        self,
        engine: GradientEngine,
        ranks: Ranks,
        algorithm: Algorithm[Any],
        parameters: FlatParameters,
        *,
        waits: bool,
    ) -> None:
        self._engine, self._ranks, self._algorithm = engine, ranks, algorithm
        self._gradient, self._waits = parameters.gradient, waits
        self._run, self._fields = NO_BATCH, NO_BATCH.fields

    def run_batch(self, batch: Batch) -> Batch:
        """Return the rollout of all ranks; its fields are gathered when they are first read."""
        if batch.fields is self._fields:
            return self._run
        self._fields, self._slots = batch.fields, batch.slots
        size, sequences = self._ranks.size, None
        if batch.sequences is not None:
            states, keep = batch.sequences.state, batch.sequences.keep
            sequences = Sequences(
                states.new_zeros(len(states), size * self._slots, 0), keep.repeat(1, size)
            )
        observation, action, fields = (
            _Gathered(rows, self._ranks, self._slots)
            for rows in (batch.observation, batch.action, batch.fields)
        )
        slots, rows = size * self._slots, size * len(batch)
        self._run = _RunBatch(
            observation, action, fields, batch.device, sequences, slots, num_rows=rows
        )
        return self._run

    def load(self, batch: Batch, scheduled: Scheduled) -> None:
        """Take a batch; see `GradientEngine`."""
        self._scheduled, self._length = scheduled, batch.sequence_length
        self._engine.load(batch, scheduled)

    def forward(self, index: Tensor, own: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the metrics of a minibatch of `run_batch`; see `GradientEngine`."""
        fields = self._algorithm.whole(Minibatch(self._run, index, self._scheduled))
        size, slots = self._ranks.size, self._slots
        time, slot = index.div(size * slots, rounding_mode="floor"), index % (size * slots)
        first = self._ranks.rank * slots
        mine = ((slot >= first) & (slot < first + slots)).nonzero().flatten()
        self._weight = len(mine) / len(index)
        rows = time[mine] * slots + slot[mine] - first
        if not len(mine):
            # Any segment, which counts nothing, so that all ranks do the same.
            rows = segment_rows(index.new_zeros(1), self._length, slots)
            mine = torch.arange(self._length, device=index.device)
        share = {name: field.index_select(0, mine) for name, field in fields.items()}
        numbers = self._engine.forward(rows, share)
        self.metrics = self._engine.metrics
        self._numbers = _weighted(numbers.to(self._gradient), self._weight)
        return self._ranks.sum(self._numbers) if self._waits else self._numbers

    def backward(self) -> None:
        """Write the gradient of the last `forward`, the mean over all ranks."""
        self._engine.backward()
        _weighted(self._gradient, self._weight)
        if self._waits:
            self._ranks.sum(self._gradient)
            return
        # One operation for both: its latency is that of the network.
        both = self._ranks.sum(torch.cat([self._gradient, self._numbers]))
        self._gradient.copy_(both[: len(self._gradient)])
        self._numbers.copy_(both[len(self._gradient) :])

    def release(self) -> None:
        """Drop the batch and tensors computed from it."""
        self._run, self._fields = NO_BATCH, NO_BATCH.fields
        self._engine.release()


def _weighted(numbers: Tensor, weight: float) -> Tensor:
    """Multiply in place; 0 also where the numbers are not finite."""
    return numbers.mul_(weight) if weight else numbers.zero_()


@dataclass(frozen=True)
class _RunBatch(Batch):
    num_rows: int = 0

    def __len__(self) -> int:
        return self.num_rows


class _Gathered(Mapping[str, Tensor]):
    """Rows ``[T · B, *]`` of all ranks by name, in the order of one rank with all slots."""

    def __init__(self, rows: Mapping[str, Tensor], ranks: Ranks, slots: int) -> None:
        self._rows, self._ranks, self._slots = rows, ranks, slots
        self._found: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._found:
            rows = self._ranks.stack(self._rows[name])  # [ranks, T · slots, *]
            by_time = rows.unflatten(1, (-1, self._slots)).transpose(0, 1)
            self._found[name] = by_time.flatten(0, 2)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def joined_update(
    ranks: Ranks, statistics: Sequence[RunningNormalizer], update: Callable[[], None]
) -> None:
    """Let ``update`` add this rank's rows to statistics, and add those of the other ranks.

    The result is the same on all ranks, and apart from rounding that of one with all rows.
    """
    if ranks.size == 1 or not statistics:
        update()
        return
    before = [each.moments() for each in statistics]
    for each in statistics:
        each.set_moments(*(torch.zeros_like(moment) for moment in each.moments()))
    update()
    moments = [moment for each in statistics for moment in each.moments()]
    rows = ranks.stack(torch.cat([moment.flatten() for moment in moments]))
    for each, old in zip(statistics, before, strict=True):
        each.set_moments(*old)
    for row in rows:
        parts = iter(row.split([moment.numel() for moment in moments]))
        for each in statistics:
            mean, var, count = (next(parts).view(old.shape) for old in each.moments())
            each.join(mean, var, count)
