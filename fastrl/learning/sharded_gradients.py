"""Gradients by autograd in several threads, each of which computes a share of every minibatch.

Torch's own threads share every operation and wait for each other at the end of each, spinning: some
hundred times in a minibatch, and for long where another process has taken a core from one of them
(a conv net with two threads on a busy machine of two cores: 30 times as slow). Here each thread
goes all the way forward and all the way back on its own, and they wait twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from fastrl.learning.algorithm import NO_BATCH, Algorithm, Loss, Minibatch
from fastrl.learning.gradients import AutogradEngine, FlatParameters, checked, in_bfloat16
from fastrl.models.policy import ActorCritic, PolicyModel


class ShardedEngine(AutogradEngine):
    """Computes what `AutogradEngine` computes, where `why_not_sharded` returns None.

    Each thread computes the loss of its share of the rows; the total and the metrics are the means
    of theirs, weighted by their rows. What depends on the whole minibatch, `Algorithm.whole`, is
    computed before. The sums over shards are always taken in the same order, so the same number of
    threads gives the same numbers.

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
    """Return in which part a model differs from `ActorCritic`; None if it computes the same."""
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
