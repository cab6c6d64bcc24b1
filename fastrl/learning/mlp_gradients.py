"""Gradients of small MLP policies on the CPU, without autograd.

Networks of this size spend most of their time with starting operations, so that one call computes
all of a minibatch: see `mlp_pass`. Tests compare it with autograd.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastrl.errors import ConfigError
from fastrl.learning import mlp_pass as kernel
from fastrl.learning.algorithm import Algorithm, ObjectiveSettings, Scheduled
from fastrl.learning.experience import Batch
from fastrl.learning.gradients import GradientEngine
from fastrl.learning.mlp_program import (
    MLPProgram,
    columns_of_others,
    encoded,
    why_not_described,
)
from fastrl.learning.objective_kernels import COLUMNS, METRICS
from fastrl.models.actor_critic import ActorCritic
from fastrl.models.distributions import ActionPart, Categoricals, Gaussians
from fastrl.models.inference.lanes import LANES
from fastrl.models.policy import PolicyModel
from fastrl.models.recurrent import RecurrentCore
from fastrl.spec import ACTION_MASK

_NOTHING = torch.empty(0)


def why_not(algorithm: Algorithm[Any], model: PolicyModel) -> str | None:
    """Return why `MLPGradientEngine` cannot be used; None if it can.

    The loss must be the one that the kernels implement, and the model one that can be described;
    see `why_not_described`. It must have one action leaf: a single categorical, or a plain Gaussian
    whose standard deviation does not depend on the state. The size of GRU and LSTM must be a
    multiple of `LANES`.
    """
    if algorithm.known_objective() is None:
        return f"the loss of {type(algorithm).__name__} is custom"
    why = why_not_described(model)
    if why is not None:
        return why
    assert isinstance(model, ActorCritic)
    if not all(p.requires_grad for p in model.parameters()):
        return "some parameters are frozen"
    return _unknown_core(model) or _unknown_part(list(model.distribution.parts.values()))


def _unknown_core(model: ActorCritic) -> str | None:
    if any(type(core) is not RecurrentCore for core in model.cores):
        return "the memory is custom"
    if any(core.num_features % LANES for core in model.cores):
        return f"model.recurrent_size is not a multiple of {LANES}"
    return None


def _unknown_part(parts: Sequence[ActionPart]) -> str | None:
    if len(parts) != 1 or type(parts[0]) not in (Categoricals, Gaussians):
        return "the action is neither one choice nor one unsquashed Box"
    if isinstance(parts[0], Categoricals) and len(parts[0].sizes) != 1:
        return "the action is several choices"
    if parts[0].state_std:
        return "standard deviations depend on the state, as model.log_std says"
    return None


class KnownLossEngine(GradientEngine):
    """Computes the loss of `why_not` by kernels; subclasses compute the network.

    Args:
        algorithm: Gives the settings of the objective.
        model: Its parameters must be views of a `FlatParameters`, into which gradients go.
    """

    metrics = METRICS

    def __init__(self, algorithm: Algorithm[Any], model: ActorCritic) -> None:
        settings_of = algorithm.known_objective()
        assert settings_of is not None
        self._model, self._settings_of = model, settings_of
        self._others, self._has_options = columns_of_others(model)
        ((self._leaf, part),) = model.distribution.parts.items()
        self._categorical = isinstance(part, Categoricals)
        self._width = part.sizes[0] if isinstance(part, Categoricals) else part.num_noise
        self._log_std: Tensor = model.distribution.log_std
        self._middle_and_half = model.distribution.middle_and_half
        self._build(model)
        self._compile()

    @torch.no_grad()
    def load(self, batch: Batch, scheduled: Scheduled) -> None:
        """Take a batch; normalise its observations once, as their statistics stay the same."""
        inputs, options = encoded(self._model, list(batch.observation.values()))
        action = batch.action[self._leaf]
        action = action.flatten() if self._categorical else action.reshape(len(action), -1)
        columns = torch.stack([batch.fields[name] for name in COLUMNS], dim=-1)
        mask = batch.fields.get(ACTION_MASK)
        self._take(
            inputs,
            options,
            action,
            columns,
            mask if self._categorical else None,
            self._settings_of(scheduled),
        )

    def _take(
        self,
        inputs: Tensor,
        options: Tensor | None,
        action: Tensor,
        columns: Tensor,
        valid: Tensor | None,
        settings: ObjectiveSettings,
    ) -> None:
        """Keep what minibatches are computed from.

        Args:
            inputs: ``[N, features] float32``, without those of wide choices.
            options: ``[N, choices] int64``: which inputs of wide choices are 1.
            action: ``[N] int64`` or ``[N, numbers]``.
            columns: ``[N, 4] float32``; see `COLUMNS`.
            valid: ``[N, options] bool``, or None where all actions are.
            settings: Weights and bounds of the loss.
        """
        self._inputs, self._options = inputs, options
        self._action = action.to(torch.int64 if self._categorical else torch.float32).contiguous()
        self._columns, self._valid = columns, None if valid is None else valid.contiguous()
        self._settings = _as_array(settings)

    def _compile(self) -> None:
        """Run the kernels once, so that the first update takes no longer than the others."""
        self._take(
            torch.zeros(1, len(self._others)),
            torch.zeros(1, 1, dtype=torch.int64) if self._has_options else None,
            torch.zeros(1) if self._categorical else torch.zeros(1, self._width),
            torch.zeros(1, len(COLUMNS)),
            None,
            ObjectiveSettings(0.2, None, 0.0, 0.5, True),
        )
        self.forward(torch.zeros(1, dtype=torch.int64))
        self.backward()

    def forward(self, index: Tensor, own: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the metrics of a minibatch, ``[6] float64``."""
        if own:
            # Advantages that are standardised over the rows of all ranks.
            self._columns[index, COLUMNS.index("advantage")] = own["advantage"]
            self._settings[-1] = False
        metrics = torch.empty(len(METRICS), dtype=torch.float64)
        if self._categorical or self._middle_and_half is None:
            self._compute(index, self._log_std, metrics)
            return metrics
        middle, half = self._middle_and_half
        assert self._log_std.grad is not None
        with torch.no_grad():
            log_std = self._model.distribution.bounded_log_std()
            self._compute(index, log_std, metrics)
            self._log_std.grad.mul_(1 - ((log_std - middle) / half).square())
        return metrics

    @abstractmethod
    def _build(self, model: ActorCritic) -> None:
        """Prepare memory for the network."""

    @abstractmethod
    def _compute(self, index: Tensor, log_std: Tensor, metrics: Tensor) -> None:
        """Write the metrics of a minibatch; its gradient may be left to `backward`.

        Args:
            index: ``[n] int64``: rows of the batch.
            log_std: ``[numbers] float32``, within their bounds.
            metrics: ``[6] float64``.
        """

    def release(self) -> None:
        """Drop the batch."""
        self._inputs = self._action = self._columns = _NOTHING
        self._options = self._valid = None


class MLPGradientEngine(KnownLossEngine):
    """Computes what `AutogradEngine` computes, where `why_not` returns None, without a memory.

    Args:
        algorithm: See `KnownLossEngine`.
        model: See there.
        threads: With more than one, the network of the value and that of the policy, if they are
            separate, are computed in a thread each. The numbers do not depend on it.
    """

    def __init__(self, algorithm: Algorithm[Any], model: ActorCritic, threads: int = 1) -> None:
        shares = threads > 1 and model.critic_body is not None
        self._pool = ThreadPoolExecutor(1, "value") if shares else None
        self._mailbox = np.zeros(kernel.NUM_LETTERS, np.int64)
        self._served: Future[bool] | None = None
        self._minibatches = 0
        super().__init__(algorithm, model)

    def _build(self, model: ActorCritic) -> None:
        """Describe the model to the kernel."""
        kind = kernel.CATEGORICAL if self._categorical else kernel.GAUSSIAN
        self._program = MLPProgram(model, _gradient_of, kind)
        if self._log_std.grad is not None:
            self._program.write(log_std_gradient=self._log_std.grad.data_ptr())

    def _take(self, *batch: Any) -> None:
        """Keep the batch, and describe it to the kernel."""
        super()._take(*batch)
        self._program.read(self._inputs, self._options)
        self._program.write(
            action=self._action.data_ptr(),
            valid=0 if self._valid is None else self._valid.data_ptr(),
            columns=self._columns.data_ptr(),
            settings=self._settings.ctypes.data,
        )
        self._minibatches = 0

    def _compute(self, index: Tensor, log_std: Tensor, metrics: Tensor) -> None:
        self._program.write(log_std=log_std.data_ptr(), metrics=metrics.data_ptr())
        self._minibatches += 1
        # A single minibatch takes no longer than to wake the other thread.
        if self._pool is not None and self._minibatches == 2:
            self._mailbox[:] = 0
            self._program.write(mailbox=self._mailbox.ctypes.data)
            self._served = self._pool.submit(kernel.run, self._program.address, 0, 0)
        index = index.to(torch.int64).contiguous()
        if not len(index) or not self._program.run(index):
            raise ConfigError(
                "minibatches of an algorithm must be rows of the batch, at least one, from 0 to "
                f"{len(self._inputs) - 1}"
            )

    def backward(self) -> None:
        """Do nothing: `forward` has written the gradient."""

    def release(self) -> None:
        """Drop the batch, and let the other thread rest."""
        super().release()
        if self._served is not None:
            self._mailbox[0] = kernel.STOP
            self._served.result()
            self._program.write(mailbox=0)
            self._served = None


def _gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _as_array(settings: ObjectiveSettings) -> NDArray[np.float64]:
    """Return what the kernels take, in the order of the attributes; infinite for None."""
    numbers = (
        math.inf if settings.clip_range is None else settings.clip_range,
        math.inf if settings.clip_value_range is None else settings.clip_value_range,
        settings.entropy_coef,
        settings.value_coef,
        settings.normalize_advantage,
    )
    return np.array(numbers, np.float64)
