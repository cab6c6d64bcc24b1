"""Gradients of large networks on the CPU: a share of each minibatch per thread.

Torch's own threads share every operation and wait for each other at the end of each, spinning: some
hundred times in a minibatch, and for long where another process has taken a core from one of them
(a conv net with two threads on a busy machine of two cores: 30 times as slow). Here each thread
goes all the way forward and all the way back on its own, and they wait twice.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from fastrl.learning.algorithm import Algorithm, Loss, Scheduled
from fastrl.learning.batch import NO_BATCH, Batch, Minibatch
from fastrl.learning.gradients import checked, in_bfloat16, own_forward
from fastrl.learning.parameters import FlatParameters
from fastrl.models.policy import PolicyModel


def obstacle(algorithm: Algorithm[Any], model: PolicyModel) -> str | None:
    """Return why `ShardedEngine` cannot be used; None if it can.

    The loss and its metrics must be means over rows, and the model must treat each row by itself,
    on the CPU. A model with a forward pass of its own may look at a minibatch as a whole, as batch
    normalisation does.
    """
    if not algorithm.is_mean_over_rows:
        return f"{type(algorithm).__name__}.is_mean_over_rows is not set"
    if any(p.device.type != "cpu" for p in model.parameters()):
        return "the model is not on the CPU"
    return own_forward(model)


class ShardedEngine:
    """Computes what `AutogradEngine` computes, where there is no `obstacle`.

    Each thread computes the loss of its share of the rows; the total and the metrics are the means
    of theirs, weighted by their rows. What depends on the whole minibatch, `Algorithm.whole`, is
    computed before. The sums over shards are always taken in the same order, so the same threads
    give the same numbers.

    Args:
        algorithm: Its loss.
        model: Its parameters must be those of ``parameters``.
        parameters: Where gradients go.
        num_threads: How many share the work.
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
        self.metrics: tuple[str, ...] = ()
        self._algorithm, self._parameters = algorithm, parameters
        device = parameters.value.device
        self._policy = in_bfloat16(model, device, is_shared=True) if bf16 else model
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(
            num_threads, "gradients", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._totals: list[Tensor] = []
        self._shares: list[float] = []

    def load(self, batch: Batch, scheduled: Scheduled) -> None:
        """Take the batch from which minibatches are drawn until `release`."""
        self._batch, self._scheduled = batch, scheduled

    def forward(self, index: Tensor) -> Tensor:
        """Return what is reported about a minibatch."""
        num_shards = min(self._num_threads, len(index))
        whole = self._algorithm.whole(Minibatch(self._batch, index, self._scheduled))
        own = {name: field.tensor_split(num_shards) for name, field in whole.items()}
        shards = [
            Minibatch(
                self._batch,
                rows,
                self._scheduled,
                {name: fields[number] for name, fields in own.items()},
            )
            for number, rows in enumerate(index.tensor_split(num_shards))
        ]
        losses = list(self._pool.map(self._evaluate, shards))
        self._totals = [loss.total for loss in losses]
        self._shares = [len(shard) / len(index) for shard in shards]
        reported = []
        for loss, share in zip(losses, self._shares, strict=True):
            self.metrics, numbers = checked(self._algorithm, loss, self.metrics)
            reported.append(numbers * share)
        return torch.stack(reported).sum(0)

    def backward(self) -> None:
        """Write the gradient of the last `forward`."""
        total = self._parameters.gradient
        for number, gradient in enumerate(
            self._pool.map(self._differentiate, self._totals, self._shares)
        ):
            if number == 0:
                total.copy_(gradient)
            else:
                total.add_(gradient)
        self._totals = []

    def release(self) -> None:
        """Let go of the batch, and of what was computed from it."""
        self._batch, self._totals = NO_BATCH, []

    def _evaluate(self, shard: Minibatch) -> Loss:
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
