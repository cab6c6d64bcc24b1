"""Gradients of large networks on the CPU: a share of each minibatch per thread.

Torch's own threads share every operation and wait for each other at the end of each, spinning: some
hundred times in a minibatch, and for long where another process has taken a core from one of them
(a conv net with two threads on a busy machine of two cores: 30 times as slow). Here each thread
goes all the way forward and all the way back on its own, and they wait twice.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TypeGuard

import torch
from torch import Tensor

from fastrl.learning.batch import NO_BATCH, Batch
from fastrl.learning.gradients import objective_slopes
from fastrl.learning.objective import ObjectiveSettings
from fastrl.learning.parameters import FlatParameters
from fastrl.models.actor_critic import ActorCritic

Outputs = tuple[Tensor, Tensor, Tensor]
"""log_prob, entropy and value, ``[n] float32`` each."""


def supports(model: object) -> TypeGuard[ActorCritic]:
    """Say whether `ShardedEngine` can differentiate a model.

    It must be an `ActorCritic` itself, on the CPU: one's own model may look at a minibatch as a
    whole, as batch normalisation does.
    """
    return type(model) is ActorCritic and all(p.device.type == "cpu" for p in model.parameters())


class ShardedEngine:
    """Computes what `AutogradEngine` computes, for the models of `supports`.

    The sums over shards are always taken in the same order, so the same threads give the same
    numbers.

    Args:
        model: Its parameters must be those of ``parameters``.
        parameters: Where gradients go.
        num_threads: How many share the work.
        bf16: Run the model under autocast.
    """

    def __init__(
        self, model: ActorCritic, parameters: FlatParameters, num_threads: int, bf16: bool
    ) -> None:
        self._model, self._parameters, self._bf16 = model, parameters, bf16
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(
            num_threads, "gradients", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._outputs: list[Outputs] = []
        self._slopes: list[Outputs] = []

    def load(self, batch: Batch, settings: ObjectiveSettings) -> None:
        """Take the batch from which minibatches are drawn until `release`."""
        self._batch, self._settings = batch, settings

    def forward(self, index: Tensor) -> Tensor:
        """Return what is reported about a minibatch, ``[6]``."""
        shards = index.tensor_split(min(self._num_threads, len(index)))
        self._outputs = list(self._pool.map(self._evaluate, shards))
        log_prob, entropy, value = (
            torch.cat([part.detach() for part in parts])
            for parts in zip(*self._outputs, strict=True)
        )
        metrics, slopes = objective_slopes(
            (log_prob, entropy, value), index, self._batch.columns, self._settings
        )
        sizes = [len(shard) for shard in shards]
        self._slopes = list(zip(*(slope.split(sizes) for slope in slopes), strict=True))
        return metrics

    def backward(self) -> None:
        """Write the gradient of the last `forward`."""
        total = self._parameters.gradient
        for number, gradient in enumerate(
            self._pool.map(self._differentiate, self._outputs, self._slopes)
        ):
            if number == 0:
                total.copy_(gradient)
            else:
                total.add_(gradient)
        self._outputs, self._slopes = [], []

    def release(self) -> None:
        """Let go of the batch, and of what was computed from it."""
        self._batch, self._outputs, self._slopes = NO_BATCH, [], []

    def _evaluate(self, index: Tensor) -> Outputs:
        observation = {k: v.index_select(0, index) for k, v in self._batch.observation.items()}
        action = {k: v.index_select(0, index) for k, v in self._batch.action.items()}
        # What autocast keeps of converted weights would be shared between threads.
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16, cache_enabled=False):
            log_prob, entropy, value = self._model.evaluate(observation, action)
        return log_prob.float(), entropy.float(), value.float()

    def _differentiate(self, outputs: Outputs, slopes: Outputs) -> Tensor:
        """Return the gradient of one shard, ``[P]``."""
        learnt = [pair for pair in zip(outputs, slopes, strict=True) if pair[0].requires_grad]
        gradients = torch.autograd.grad(
            [output for output, _ in learnt],
            self._parameters.parameters,
            [slope for _, slope in learnt],
            materialize_grads=True,
        )
        return torch.cat([gradient.reshape(-1) for gradient in gradients])
