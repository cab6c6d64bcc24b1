"""Gradients of the known losses over small MLP policies on the CPU, in one compiled call.

For small networks most of the time goes into starting operations, so one call of `mlp_pass`
computes a whole minibatch, loss included. `mlp_network` is for other losses, `sequence_gradients`
for memories. Tests compare all of them with autograd.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.errors import ConfigError
from fastrl.learning import mlp_pass as kernel
from fastrl.learning.algorithm import Algorithm, Batch, ObjectiveSettings, Scheduled
from fastrl.learning.gradients import GradientEngine
from fastrl.learning.objective_kernels import COLUMNS, METRICS
from fastrl.learning.shared_gradients import custom_forward
from fastrl.models.distributions import ActionPart, Categoricals, Gaussians
from fastrl.models.inference.lanes import LANES
from fastrl.models.inference.layers import IDENTITY, RELU, TANH
from fastrl.models.networks import Body, OneHotEncoder, VectorEncoder, columns_by_kind
from fastrl.models.policy import ActorCritic, PolicyModel
from fastrl.models.recurrent import RecurrentCore
from fastrl.spec import ACTION_MASK

_ACTIVATIONS: Mapping[type[nn.Module], int] = {nn.Tanh: TANH, nn.ReLU: RELU}
_NOTHING = torch.empty(0)
_PLACES = {name: place for place, name in enumerate(kernel.PROGRAM.names or ())}


def why_not_described(model: PolicyModel) -> str | None:
    """Return why kernels cannot compute the bodies and heads of a model; None if they can.

    The model must compute the same as `ActorCritic`, in float32 on the CPU, over vectors of
    numbers and choices, with tanh or ReLU.
    """
    custom = custom_forward(model)
    if custom is not None:
        return custom
    assert isinstance(model, ActorCritic)
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in model.parameters()):
        return "parameters are not all float32 on the CPU"
    bodies = [body for body in (model.actor_body, model.critic_body) if body is not None]
    encoders = model.actor_body.encoders
    if any(type(encoder) not in (VectorEncoder, OneHotEncoder) for encoder in encoders):
        return "an observation is neither a vector nor a choice"
    if any(encoder.is_wide and not body.gathers for body in bodies for encoder in encoders):
        return "a choice with many options is observed without hidden layers"
    if any(
        type(layer) not in (nn.Linear, nn.Tanh, nn.ReLU) for body in bodies for layer in body.mlp
    ):
        return "the activation is neither tanh nor relu"
    if any(type(head) is not nn.Linear for head in (model.actor_head, model.critic_head)):
        return "a head is not a single linear layer"
    return None


def columns_of_others(model: ActorCritic) -> tuple[Tensor, bool]:
    """Return the inputs of the first layers outside of wide choices, and whether there are any.

    The inputs are ``[inputs] int64``, columns of the layers' weights.
    """
    vectors, narrow, wide = columns_by_kind(model.actor_body.encoders)
    return torch.cat([vectors, narrow]).sort().values, len(wide) > 0


@torch.no_grad()
def encoded(model: ActorCritic, leaves: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return an observation as the first layers read it.

    Args:
        model: A model whose encoders have no parameters; see `why_not_described`.
        leaves: Leaves of the observation, ``[n, *shape]`` each.

    Returns:
        ``[n, inputs] float32`` without wide choices; and ``[n, choices] int64``: the columns of
        the weights that belong to the chosen options, or None without wide choices.
    """
    encoders: Any = model.actor_body.encoders
    numbers, options, first = [], [], 0
    for encoder, normalizer, leaf in zip(encoders, model.normalizers, leaves, strict=True):
        if encoder.is_wide:
            options.append(encoder.columns(leaf) + first)
        else:
            numbers.append(encoder(normalizer(leaf)))
        first += encoder.num_features
    if not numbers:
        numbers.append(torch.empty(len(leaves[0]), 0))
    inputs = numbers[0] if len(numbers) == 1 else torch.cat(numbers, dim=1)
    return inputs.contiguous(), torch.cat(options, dim=1) if options else None


class MLPProgram:
    """The records of `mlp_pass` for a model, of which `why_not_described` returns None.

    Args:
        model: The policy, whose parameters must not be moved in memory.
        gradient_of: Returns the contiguous tensor that receives the gradient of a parameter.
        kind: Task of `mlp_pass`, such as its `OUTPUTS`.

    Attributes:
        address: Address of the `mlp_pass.PROGRAM` record.
    """

    def __init__(
        self, model: ActorCritic, gradient_of: Callable[[Tensor], Tensor], kind: int
    ) -> None:
        self._gradient_of = gradient_of
        self._memory: list[Any] = []
        self._others, self._has_options = columns_of_others(model)
        actor, critic = model.actor_body, model.critic_body
        if critic is None:
            heads = (model.actor_head, model.critic_head)
            towers = [self._tower(actor, heads, policy=-2, value=-1)]
        else:
            towers = [
                self._tower(actor, (model.actor_head,), policy=-1),
                self._tower(critic, (model.critic_head,), value=-1),
            ]
        record = np.zeros(1, kernel.PROGRAM)
        self.address = record.ctypes.data
        # Setting a field of a record takes numpy five times as long.
        self._record = record.view(np.int64)
        self.write(
            towers=self._kept(np.concatenate(towers)),
            num_towers=len(towers),
            num_inputs=len(self._others),
            width=model.actor_head.out_features,
            kind=kind,
        )

    def write(self, **fields: int) -> None:
        """Set fields of the record."""
        for name, content in fields.items():
            self._record[_PLACES[name]] = content

    def read(self, inputs: Tensor, options: Tensor | None) -> None:
        """Set the memory of the inputs; see `encoded`."""
        self.write(
            inputs=inputs.data_ptr(),
            options=0 if options is None else options.data_ptr(),
            num_choices=0 if options is None else options.shape[1],
            num_rows=inputs.shape[0],
        )

    def run(self, index: Tensor) -> None:
        """Compute some rows.

        Args:
            index: ``[n]``, of any type of integers.

        Raises:
            ConfigError: There are no rows, or a row is outside of the batch.
        """
        if index.dtype != torch.int64 or not index.is_contiguous():
            index = index.to(torch.int64).contiguous()
        rows = index.shape[0]
        if not rows or not kernel.run(self.address, index.data_ptr(), rows):
            raise ConfigError(
                "minibatches of an algorithm must be rows of the batch, at least one, from 0 to "
                f"{self._record[_PLACES['num_rows']] - 1}"
            )

    def _tower(
        self, body: Body, heads: Sequence[nn.Linear], policy: int = 0, value: int = 0
    ) -> NDArray[Any]:
        """Return the record of a body and its heads; heads are numbered from the end."""
        inputs = kernel.padded(len(self._others))
        source = self._buffer(inputs, kernel.TILE), self._buffer(kernel.TILE, inputs), 0
        tower = np.zeros(1, kernel.TOWER)
        tower["features"], tower["rows"] = source[:2]
        modules: list[Any] = list(body.mlp)
        layers: list[tuple[nn.Linear, int]] = [
            (linear, _ACTIVATIONS[type(activation)])
            for linear, activation in zip(modules[::2], modules[1::2], strict=True)
        ]
        layers += [(head, IDENTITY) for head in heads]
        records = np.zeros(len(layers), kernel.LAYER)
        for number, (linear, activation) in enumerate(layers):
            outputs, record = kernel.padded(linear.out_features), records[number]
            gradients = [self._gradient_of(each) for each in (linear.weight, linear.bias)]
            self._memory += gradients
            is_hidden, has_options = number < len(modules) // 2, not number and self._has_options
            num_inputs = len(self._others) if not number else linear.in_features
            target, gradient = (self._buffer(outputs, kernel.TILE) for _ in range(2))
            rows = self._buffer(kernel.TILE, outputs) if is_hidden else 0
            found = {
                "weight": linear.weight.data_ptr(),
                "bias": linear.bias.data_ptr(),
                "weight_gradient": gradients[0].data_ptr(),
                "bias_gradient": gradients[1].data_ptr(),
                "num_inputs": num_inputs if has_options else linear.in_features,
                "num_outputs": linear.out_features,
                "activation": activation,
                "option_step": 4,
                "option_row": 4 * linear.in_features,
                "source": source[0],
                "source_rows": source[1],
                "source_gradient": source[2],
                "is_last_reader": number == len(layers) - 1 or is_hidden,
                "target": target,
                "target_rows": rows,
                "gradient": gradient,
                "sums": self._buffer(outputs, kernel.padded(linear.in_features)),
            }
            if has_options:
                found["options"] = linear.weight.data_ptr()
                found["others"] = self._others.data_ptr()
                found["weight"] = self._buffer(outputs, kernel.padded(num_inputs))
            for name, content in found.items():
                record[name] = content
            if is_hidden:
                source = target, rows, gradient
        tower["layers"], tower["num_layers"] = self._kept(records), len(layers)
        tower["policy"] = len(layers) + policy if policy else -1
        tower["value"] = len(layers) + value if value else -1
        return tower

    def _buffer(self, rows: int, columns: int) -> int:
        """Return the address of new zeros, ``[rows, columns] float32``."""
        zeros = torch.zeros(max(1, rows), max(1, columns))
        self._memory.append(zeros)
        return zeros.data_ptr()

    def _kept(self, records: NDArray[Any]) -> int:
        """Return the address of records, which are kept as long as this object."""
        self._memory.append(records)
        return records.ctypes.data


def why_not(algorithm: Algorithm[Any], model: PolicyModel) -> str | None:
    """Return why the compiled loss cannot be used; None if it can.

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
        """Set the batch; normalise its observations once, as their statistics stay the same."""
        inputs, options = encoded(self._model, list(batch.observation.values()))
        action = batch.action[self._leaf]
        action = action.flatten() if self._categorical else action.reshape(len(action), -1)
        # The kernels read float32, also if an algorithm prepares numbers of another type.
        columns = torch.stack([batch.fields[name].float() for name in COLUMNS], dim=-1)
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
        """Keep the data of the batch.

        Args:
            inputs: ``[N, features] float32``, without wide choices.
            options: ``[N, choices] int64``: inputs of wide choices that are 1.
            action: ``[N] int64`` or ``[N, numbers]``.
            columns: ``[N, 4] float32``; see `COLUMNS`.
            valid: ``[N, options] bool``, or None if all actions are valid.
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
            # Advantages standardised over the rows of all ranks.
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
    """Computes the same as `AutogradEngine`, if `why_not` returns None and there is no memory.

    Args:
        algorithm: See `KnownLossEngine`.
        model: See `KnownLossEngine`.
        threads: If more than one, separate networks of value and policy are computed in one
            thread each. The results do not depend on it.
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
        self._program = MLPProgram(model, gradient_of, kind)
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
        # Waking the other thread takes as long as a single minibatch.
        if self._pool is not None and self._minibatches == 2:
            self._mailbox[:] = 0
            self._program.write(mailbox=self._mailbox.ctypes.data)
            self._served = self._pool.submit(kernel.run, self._program.address, 0, 0)
        self._program.run(index)

    def backward(self) -> None:
        """Do nothing: `forward` has written the gradient."""

    def release(self) -> None:
        """Drop the batch, and send the other thread to sleep."""
        super().release()
        if self._served is not None:
            self._mailbox[0] = kernel.STOP
            self._served.result()
            self._program.write(mailbox=0)
            self._served = None


def gradient_of(parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter of a `FlatParameters`."""
    assert parameter.grad is not None
    return parameter.grad


def _as_array(settings: ObjectiveSettings) -> NDArray[np.float64]:
    """Return settings as a vector, in the order of the attributes; infinite for None."""
    numbers = (
        math.inf if settings.clip_range is None else settings.clip_range,
        math.inf if settings.clip_value_range is None else settings.clip_value_range,
        settings.entropy_coef,
        settings.value_coef,
        settings.normalize_advantage,
    )
    return np.array(numbers, np.float64)
