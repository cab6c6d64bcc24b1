"""Gradients of the objective: what a learner asks for, and how any model's are computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from fastrl.compiled import compiled_by_torch
from fastrl.learning.batch import NO_BATCH, Batch
from fastrl.learning.kernels import objective_gradient
from fastrl.learning.objective import METRICS, ObjectiveSettings, objective
from fastrl.learning.parameters import FlatParameters
from fastrl.models.policy import PolicyModel


class GradientEngine(Protocol):
    """Computes the objective of minibatches, and its gradient into a `FlatParameters`."""

    def load(self, batch: Batch, settings: ObjectiveSettings) -> None:
        """Take the batch from which minibatches are drawn until `release`."""
        ...

    def forward(self, index: Tensor) -> Tensor:
        """Return what is reported about a minibatch, ``[6]``; see `objective.METRICS`.

        Args:
            index: ``[n] int64``: rows of the batch, on its device.
        """
        ...

    def backward(self) -> None:
        """Write the gradient of the last `forward`."""
        ...

    def release(self) -> None:
        """Let go of the batch, whose memory is the sampler's, and of what was computed from it."""
        ...


class AutogradEngine:
    """Works for any `PolicyModel` on any device.

    Args:
        model: Its parameters must be those of ``parameters``.
        parameters: Where gradients go.
        compiled: Run model and loss through ``torch.compile``, where that works.
        bf16: Run the model under autocast.
    """

    def __init__(
        self, model: PolicyModel, parameters: FlatParameters, compiled: bool, bf16: bool
    ) -> None:
        self._model, self._parameters, self._bf16 = model, parameters, bf16
        self._device = parameters.value.device
        self._compiled = compiled
        self._by_kernel = self._device.type == "cpu" and not compiled
        self._objective = compiled_by_torch(self._evaluate_all) if compiled else self._evaluate_all
        self._outputs: tuple[Tensor, ...] = ()
        self._slopes: tuple[Tensor | None, ...] = ()

    def load(self, batch: Batch, settings: ObjectiveSettings) -> None:
        """Take the batch from which minibatches are drawn until `release`."""
        self._batch, self._settings = batch, settings
        if self._compiled:
            self._settings = settings.with_tensors(self._device)

    def forward(self, index: Tensor) -> Tensor:
        """Return what is reported about a minibatch, ``[6]``."""
        observation = {k: v.index_select(0, index) for k, v in self._batch.observation.items()}
        action = {k: v.index_select(0, index) for k, v in self._batch.action.items()}
        if self._by_kernel:
            outputs = self._outputs = self._evaluate(observation, action)
            constant = tuple(output.detach() for output in outputs)
            metrics, self._slopes = objective_slopes(
                constant, index, self._batch.columns, self._settings
            )
            return metrics
        columns = self._batch.columns.index_select(0, index)
        loss, metrics = self._objective(observation, action, columns, self._settings)
        self._outputs, self._slopes = (loss,), (None,)
        return metrics

    def backward(self) -> None:
        """Write the gradient of the last `forward`."""
        self._parameters.gradient.zero_()
        pairs = zip(self._outputs, self._slopes, strict=True)
        learnt = [(output, slope) for output, slope in pairs if output.requires_grad]
        torch.autograd.backward([output for output, _ in learnt], [slope for _, slope in learnt])
        self._outputs = self._slopes = ()

    def release(self) -> None:
        """Let go of the batch, and of what was computed from it."""
        self._batch, self._outputs, self._slopes = NO_BATCH, (), ()

    def _evaluate_all(
        self,
        observation: Mapping[str, Tensor],
        action: Mapping[str, Tensor],
        columns: Tensor,
        settings: ObjectiveSettings,
    ) -> tuple[Tensor, Tensor]:
        return objective(*self._evaluate(observation, action), columns, settings)

    def _evaluate(
        self, observation: Mapping[str, Tensor], action: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log_prob, entropy and value, ``[n] float32`` each."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            log_prob, entropy, value = self._model.evaluate(observation, action)
        return log_prob.float(), entropy.float(), value.float()


def objective_slopes(
    outputs: tuple[Tensor, ...], index: Tensor, columns: Tensor, settings: ObjectiveSettings
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return what is reported about a minibatch, and the derivatives of its loss, on the CPU.

    Args:
        outputs: log_prob, entropy and value of the model, ``[n] float32`` each, as constants.
        index: ``[n] int64``: rows of ``columns``.
        columns: ``[N, 4] float32``; see `objective.COLUMNS`.
        settings: Weights and bounds of the loss.

    Returns:
        Metrics ``[6] float64``, see `objective.METRICS`, and the loss's derivatives by each of
        the outputs, ``[n] float32``.
    """
    log_prob, entropy, value = outputs
    log_prob_slope, value_slope = torch.empty_like(log_prob), torch.empty_like(value)
    metrics = torch.empty(len(METRICS), dtype=torch.float64)
    objective_gradient(
        log_prob.numpy(),
        entropy.numpy(),
        value.numpy(),
        index.numpy(),
        columns.numpy(),
        settings.as_array(),
        log_prob_slope.numpy(),
        value_slope.numpy(),
        metrics.numpy(),
    )
    entropy_slope = torch.full_like(log_prob, -float(settings.entropy_coef) / len(index))
    return metrics, (log_prob_slope, entropy_slope, value_slope)
