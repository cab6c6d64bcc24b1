"""Gradients of minibatches that are divided among threads, or among the ranks of a run.

With several threads, each computes a share of every minibatch by autograd, and they wait for each
other twice per minibatch. Torch's own threads share every operation and spin until all have
finished it, some hundred times per minibatch, and for long if another process takes a core (a
conv net with two threads on a busy machine of two cores: 30 times as slow).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastrl.learning.algorithm import (
    NO_BATCH,
    Algorithm,
    Batch,
    Loss,
    Minibatch,
    Scheduled,
    Sequences,
    segment_rows,
)
from fastrl.learning.gradients import (
    AutogradEngine,
    FlatParameters,
    GradientEngine,
    checked,
    in_bfloat16,
)
from fastrl.learning.ranks import Ranks
from fastrl.models.policy import ActorCritic, PolicyModel


class ShardedEngine(AutogradEngine):
    """Computes the same as `AutogradEngine`, if `why_not_sharded` returns None.

    Each thread computes the loss of its share of the rows; the total and the metrics are the means
    over shares, weighted by their rows. `Algorithm.whole` is computed before for all rows. The
    sums over shares are always taken in the same order, so the same number of
    threads gives the same numbers.

    Args:
        algorithm: Its loss.
        model: Its parameters must be those of ``parameters``.
        parameters: Vectors of the parameters and gradients.
        num_threads: Number of threads.
        bf16: Run the model under autocast.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any],
        model: PolicyModel,
        parameters: FlatParameters,
        num_threads: int,
        bf16: bool,
    ) -> None:
        super().__init__(algorithm, model, parameters, compiled=False, bf16=False)
        if bf16:
            self._policy = in_bfloat16(model, self._device, is_shared=True)
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(
            num_threads, "gradients", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._totals: list[Tensor] = []
        self._shares: list[float] = []

    def forward(self, index: Tensor, own: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the metrics of a minibatch; see `GradientEngine`."""
        length = self._batch.sequence_length
        num_shards = min(self._num_threads, len(index) // length)

        def shares(rows: Tensor) -> list[Tensor]:
            # A sequence cannot be divided.
            by_time = rows.unflatten(0, (length, -1))
            return [part.flatten(0, 1) for part in by_time.tensor_split(num_shards, 1)]

        if own is None:
            own = self._algorithm.whole(Minibatch(self._batch, index, self._scheduled))
        split = {name: shares(field) for name, field in own.items()}
        shards = [
            Minibatch(
                self._batch,
                rows,
                self._scheduled,
                {name: fields[number] for name, fields in split.items()},
            )
            for number, rows in enumerate(shares(index))
        ]
        losses = list(self._pool.map(self._evaluate_shard, shards))
        self._totals = [loss.total for loss in losses]
        self._shares = [len(shard) / len(index) for shard in shards]
        reported = []
        for loss, share in zip(losses, self._shares, strict=True):
            self.metrics, numbers = checked(self._algorithm, loss, self.metrics)
            reported.append(numbers * share)
        return torch.stack(reported).sum(0)

    def backward(self) -> None:
        """Write the gradient of the last `forward`."""
        first, *others = self._pool.map(self._differentiate, self._totals, self._shares)
        self._parameters.gradient.copy_(first)
        for gradient in others:
            self._parameters.gradient.add_(gradient)
        self._totals = []

    def release(self) -> None:
        """Drop the batch and tensors computed from it."""
        self._batch, self._totals = NO_BATCH, []

    def _evaluate_shard(self, shard: Minibatch) -> Loss:
        return self._algorithm.loss(shard, self._policy)

    def _differentiate(self, total: Tensor, share: float) -> Tensor:
        """Return a shard's part of the gradient, ``[P]``."""
        gradients = torch.autograd.grad(
            total,
            self._parameters.parameters,
            torch.full_like(total, share),
            materialize_grads=True,
        )
        return torch.cat([gradient.reshape(-1) for gradient in gradients])


def why_not_sharded(algorithm: Algorithm[Any], model: PolicyModel) -> str | None:
    """Return why `ShardedEngine` cannot be used; None if it can.

    The loss and its metrics must be means over rows, and the model must treat each row by itself,
    on the CPU. A model with a custom forward pass may depend on the minibatch as a whole, as batch
    normalisation does.
    """
    if not algorithm.is_mean_over_rows:
        return f"{type(algorithm).__name__}.is_mean_over_rows is not set"
    if any(p.device.type != "cpu" for p in model.parameters()):
        return "the model is not on the CPU"
    return custom_forward(model)


_METHODS = ("forward", "evaluate", "_inputs", "_leaves")
_PARTS = (
    *("normalizers", "actor_body", "critic_body", "actor_core", "critic_core"),
    *("actor_head", "critic_head", "distribution"),
)


def custom_forward(model: object) -> str | None:
    """Return the part in which a model differs from `ActorCritic`; None if it computes the same."""
    name = type(model).__name__
    if not isinstance(model, ActorCritic):
        return f"{name} is not an ActorCritic"
    for method in _METHODS:
        if getattr(type(model), method) is not getattr(ActorCritic, method):
            return f"{name}.{method} is custom"
    for part in _PARTS:
        for module in getattr(model, part).modules() if getattr(model, part) is not None else ():
            if not _is_row_by_row(type(module)):
                return f"{name}.{part} has a {type(module).__name__}"
    return None


def _is_row_by_row(module: type[nn.Module]) -> bool:
    """Return whether a module is known to treat each row of a minibatch by itself."""
    known = module.__module__.startswith(("fastrl.models.", "torch.nn.modules."))
    return known and not issubclass(module, nn.modules.batchnorm._BatchNorm)


class RankedEngine(GradientEngine):
    """Computes the gradient of minibatches whose rows belong to several ranks.

    Every rank draws the same minibatches from `run_batch`, and another engine computes the loss of
    the rows in its own slots. Total, metrics and gradient are means over the ranks,
    weighted by rows. They equal those of one rank with all slots if the loss is a mean over rows.
    `Algorithm.whole` sees all rows; the fields that it reads are gathered once per rollout.

    Args:
        engine: Computes this rank's share.
        ranks: All ranks, which have the same number of slots.
        algorithm: Its loss.
        parameters: Vectors of the parameters and gradients.
        waits: Whether `forward` waits for the metrics; otherwise they are final after `backward`.
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
        """Set the batch; see `GradientEngine`."""
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
            # Any segment with weight 0, so that all ranks run the same operations.
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
        # One operation for both, as its time is the latency of the network.
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
