"""Gradients of small MLP policies on the CPU, also with GRU or LSTM, without autograd.

With 64 units per layer most of the time goes into starting operations, so this starts few: three
per layer forward, four backward, all into memory that is kept, and one call for distribution,
loss and their derivatives. It takes less than half the time of autograd; a test compares both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.learning.algorithm import Algorithm, ObjectiveSettings, Scheduled
from fastrl.learning.experience import Batch, Sequences
from fastrl.learning.gradients import GradientEngine, custom_forward
from fastrl.learning.objective_kernels import (
    COLUMNS,
    METRICS,
    categorical_gradient,
    gaussian_gradient,
)
from fastrl.learning.option_kernels import add_gradients, add_options
from fastrl.models import recurrent_kernels as kernels
from fastrl.models.actor_critic import ActorCritic
from fastrl.models.distributions import ActionPart, Categoricals, Gaussians
from fastrl.models.inference.lanes import LANES
from fastrl.models.networks import Body, OneHotEncoder, VectorEncoder, columns_by_kind
from fastrl.models.policy import PolicyModel
from fastrl.models.recurrent import Core, RecurrentCore
from fastrl.models.recurrent_loops import Loop
from fastrl.spec import ACTION_MASK

_NOTHING = torch.empty(0)
_MINUS_ONE = torch.tensor(-1.0)
_INVALID = torch.finfo(torch.float32).min
"""Logit of an invalid action in the kernel: less any other logit its exponential is exactly 0, and
times that it is 0, unlike -inf. Logits of the network are far above it."""


def why_not(algorithm: Algorithm[Any], model: PolicyModel) -> str | None:
    """Return why `MLPGradientEngine` cannot be used; None if it can.

    The loss must be the one that the kernels implement. The model must compute what an
    `ActorCritic` computes, in float32 on the CPU, over vectors of numbers and choices, with tanh or
    ReLU, and have one action leaf: a single categorical, or a plain Gaussian whose standard
    deviation does not depend on the state. The size of GRU and LSTM must be a multiple of `LANES`.
    """
    if algorithm.known_objective() is None:
        return f"the loss of {type(algorithm).__name__} is custom"
    custom = custom_forward(model)
    if custom is not None:
        return custom
    assert isinstance(model, ActorCritic)
    parameters = list(model.parameters())
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in parameters):
        return "parameters are not all float32 on the CPU"
    if not all(p.requires_grad for p in parameters):
        return "some parameters are frozen"
    return (
        _unknown_layer(model)
        or _unknown_core(model)
        or _unknown_part(list(model.distribution.parts.values()))
    )


def _unknown_layer(model: ActorCritic) -> str | None:
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


@dataclass
class _Layer:
    """A linear layer and what follows it; all tensors are views of a `FlatParameters`.

    Attributes:
        activation: Tanh, ReLU, or None.
        weight: ``[out, in]``.
        bias: ``[out]``.
        weight_gradient: ``[out, in]``.
        bias_gradient: ``[out]``.
    """

    activation: type[nn.Module] | None
    weight: Tensor
    bias: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor

    @classmethod
    def of(cls, linear: nn.Linear, activation: nn.Module | None = None) -> _Layer:
        assert linear.weight.grad is not None
        assert linear.bias.grad is not None
        return cls(
            activation=None if activation is None else type(activation),
            weight=linear.weight.detach(),
            bias=linear.bias.detach(),
            weight_gradient=linear.weight.grad,
            bias_gradient=linear.bias.grad,
        )

    @property
    def width(self) -> int:
        """Number of outputs."""
        return len(self.bias)

    def forward(self, inputs: Tensor, output: Tensor) -> None:
        if self.activation is nn.Tanh:
            # tanh(x) = 2 / (1 + exp(-2x)) - 1 to within 2e-7; torch's own takes 10 times as long.
            self.sums(inputs, 2, output)
            torch.add(_MINUS_ONE, output.sigmoid_(), alpha=2, out=output)
            return
        self.sums(inputs, 1, output)
        if self.activation is nn.ReLU:
            output.relu_()

    def sums(self, inputs: Tensor, scale: int, output: Tensor) -> None:
        """Write the weighted sums of inputs, and the bias, times a number."""
        torch.addmm(self.bias, inputs, self.weight.t(), beta=scale, alpha=scale, out=output)

    def weigh(self, inputs: Tensor, gradient: Tensor) -> None:
        """Write the gradient of the weights."""
        torch.mm(gradient.t(), inputs, out=self.weight_gradient)

    def backward(self, inputs: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
        """Write the gradients of the parameters; return that before activation, in place."""
        if self.activation is nn.Tanh:
            torch.ops.aten.tanh_backward.grad_input(gradient, output, grad_input=gradient)
        elif self.activation is nn.ReLU:
            torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)
        self.weigh(inputs, gradient)
        torch.sum(gradient, 0, out=self.bias_gradient)
        return gradient


@dataclass
class _WideLayer(_Layer):
    """A first layer that adds up the weights of the options of wide choices.

    Attributes:
        others: Which inputs are those of other leaves, ``[in] int64``.
        options: Which inputs are 1 in each row, ``[n, choices] int64``; set before `forward`.
    """

    others: Tensor = _NOTHING
    options: Tensor = _NOTHING

    def sums(self, inputs: Tensor, scale: int, output: Tensor) -> None:
        """Write the sums; see `_Layer`."""
        of_others = self.weight.index_select(1, self.others).t()
        torch.addmm(self.bias, inputs, of_others, beta=scale, alpha=scale, out=output)
        add_options(self.weight.numpy(), self.options.numpy(), float(scale), output.numpy())

    def weigh(self, inputs: Tensor, gradient: Tensor) -> None:
        """Write the gradient of the weights; see `_Layer`."""
        self.weight_gradient.zero_().index_copy_(1, self.others, gradient.t() @ inputs)
        add_gradients(gradient.numpy(), self.options.numpy(), self.weight_gradient.numpy())


class _RecurrentLayer:
    """A layer of GRU or LSTM; with the same methods.

    Args:
        layers: The module.
        number: Of the layer.
        first: Column of the policy's state at which that of the module begins.

    Attributes:
        weight: ``[gates · H, in]``: that of the inputs.
        width: H.
    """

    def __init__(self, layers: nn.RNNBase, number: int, first: int) -> None:
        parameters = layers.all_weights[number]
        self.weight, self._recurrent, self._bias, self._recurrent_bias = (
            parameter.detach() for parameter in parameters
        )
        self._gradients = [parameter.grad for parameter in parameters]
        self._kind = kernels.LSTM if isinstance(layers, nn.LSTM) else kernels.GRU
        size, distance = layers.hidden_size, layers.num_layers * layers.hidden_size
        starts = [first + number * size + part * distance for part in range(self._kind)]
        self._columns = [slice(start, start + size) for start in starts]
        self.width = size
        self._memory: dict[torch.Size, tuple[Loop, Tensor]] = {}

    def begin(self, state: Tensor, keep: Tensor) -> None:
        """Take the states before each sequence and what is kept; see `Sequences.of`."""
        length, rows = keep.shape
        if keep.shape not in self._memory:
            loop = Loop(self._kind, length, rows, self.width)
            self._memory[keep.shape] = loop, torch.empty(length * rows, len(self.weight))
        self._loop, self._inputs = self._memory[keep.shape]
        self._state = torch.cat([state[:, columns] for columns in self._columns], 1)
        self._keep = keep

    def forward(self, inputs: Tensor, output: Tensor) -> None:
        torch.addmm(self._bias, inputs, self.weight.t(), out=self._inputs)
        weights = self._recurrent, self._recurrent_bias
        self._loop.forward(self._inputs, self._state, self._keep, *weights)
        output.copy_(self._loop.outputs)

    def backward(self, inputs: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
        loop, (weight, recurrent, bias, recurrent_bias) = self._loop, self._gradients
        loop.backward(gradient, None, self._recurrent)
        torch.mm(loop.by_inputs.t(), inputs, out=weight)
        torch.sum(loop.by_inputs, 0, out=bias)
        loop.weights_gradient(recurrent)
        torch.sum(loop.by_products, 0, out=recurrent_bias)
        return loop.by_inputs


class _Tower:
    """A body, its memory and heads; outputs ``[n, out]`` and gradients are allocated once per n.

    Attributes:
        outputs: Of each head in the last `forward`, ``[n, out]``.
        gradients: By these; to be written before `backward`.
        wide: The first layer, if it gathers.
        memory: The recurrent layers.
    """

    def __init__(self, model: ActorCritic, body: Body, core: Core | None, *heads: Any) -> None:
        modules = list(body.mlp)
        self._layers: list[_Layer | _RecurrentLayer] = [
            (_WideLayer if body.gathers and linear is modules[0] else _Layer).of(linear, activation)
            for linear, activation in zip(modules[::2], modules[1::2], strict=True)
            if isinstance(linear, nn.Linear)
        ]
        self.wide = [layer for layer in self._layers if isinstance(layer, _WideLayer)]
        self.memory: list[_RecurrentLayer] = []
        if isinstance(core, RecurrentCore):
            total = sum(each.state_size for each in model.cores)
            first = 0 if core is model.actor_core else total - core.state_size
            depth = range(core.layers.num_layers)
            self.memory = [_RecurrentLayer(core.layers, number, first) for number in depth]
        self._layers += self.memory
        self._depth = len(self._layers)
        self._layers += [_Layer.of(head) for head in heads]
        self._memory: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def forward(self, inputs: Tensor) -> None:
        """Compute ``outputs`` of ``inputs [n, features]``."""
        rows, depth = len(inputs), self._depth
        if rows not in self._memory:
            widths = [layer.width for layer in self._layers]
            outputs, gradients = ([torch.empty(rows, width) for width in widths] for _ in range(2))
            self._memory[rows] = outputs, gradients
        outputs, gradients = self._last = self._memory[rows]
        self._inputs = [inputs, *outputs[:depth]]
        for i, (layer, output) in enumerate(zip(self._layers, outputs, strict=True)):
            layer.forward(self._inputs[min(i, depth)], output)
        self.outputs, self.gradients = outputs[depth:], gradients[depth:]

    def backward(self) -> None:
        """Write the gradients of all parameters."""
        (outputs, gradients), depth = self._last, self._depth
        for i in range(len(self._layers) - 1, -1, -1):
            level = min(i, depth)
            layer, source = self._layers[i], self._inputs[level]
            by_sums = layer.backward(source, outputs[i], gradients[i])
            if level and i == len(self._layers) - 1:
                torch.mm(by_sums, layer.weight, out=gradients[level - 1])
            elif level and i >= depth:
                gradients[depth - 1].addmm_(by_sums, layer.weight)
            elif level:
                torch.mm(by_sums, layer.weight, out=gradients[i - 1])


class MLPGradientEngine(GradientEngine):
    """Computes what `AutogradEngine` computes, where `why_not` returns None.

    Args:
        algorithm: Gives the settings of the objective.
        model: Its parameters must be views of a `FlatParameters`, into which gradients go.
    """

    metrics = METRICS

    def __init__(self, algorithm: Algorithm[Any], model: ActorCritic) -> None:
        settings_of = algorithm.known_objective()
        assert settings_of is not None
        self._model, self._settings_of = model, settings_of
        actor = model, model.actor_body, model.actor_core, model.actor_head
        if model.critic_body is None:
            self._towers = [_Tower(*actor, model.critic_head)]
        else:
            self._towers = [
                _Tower(*actor),
                _Tower(model, model.critic_body, model.critic_core, model.critic_head),
            ]
        vectors, narrow, _ = columns_by_kind(model.actor_body.encoders)
        self._others = torch.cat([vectors, narrow]).sort().values
        self._options: Tensor | None = None
        for layer in chain.from_iterable(tower.wide for tower in self._towers):
            layer.others = self._others
        self._sequences: Sequences | None = None
        self._invalid: Tensor | None = None
        ((self._leaf, part),) = model.distribution.parts.items()
        self._categorical = isinstance(part, Categoricals)
        self._log_std = model.distribution.log_std
        self._middle_and_half = model.distribution.middle_and_half
        self._compile(part)

    @torch.no_grad()
    def load(self, batch: Batch, scheduled: Scheduled) -> None:
        """Take a batch; normalise its observations once, as their statistics stay the same."""
        encoders: Any = self._model.actor_body.encoders
        leaves = batch.observation.values()
        encoded, options, first = [torch.empty(len(batch), 0)], [], 0
        for encoder, normalizer, leaf in zip(
            encoders, self._model.normalizers, leaves, strict=True
        ):
            if encoder.is_wide:
                options.append(encoder.columns(leaf) + first)
            else:
                encoded.append(encoder(normalizer(leaf)))
            first += encoder.num_features
        self._inputs = encoded[1] if len(encoded) == 2 else torch.cat(encoded, dim=1)
        self._options = torch.cat(options, dim=1) if options else None
        action = batch.action[self._leaf]
        action = action.flatten() if self._categorical else action.reshape(len(action), -1)
        columns = torch.stack([batch.fields[name] for name in COLUMNS], dim=-1)
        self._sequences = batch.sequences
        mask = batch.fields.get(ACTION_MASK)
        self._invalid = None if mask is None else ~mask
        settings = _as_array(self._settings_of(scheduled))
        self._constants = (action.numpy(), columns.numpy(), settings)

    def _compile(self, part: ActionPart) -> None:
        """Run the kernels once, so that the first update takes no longer than the others."""
        first = torch.zeros(1, dtype=torch.int64)
        action = first if self._categorical else torch.zeros(1, part.num_noise)
        settings = _as_array(ObjectiveSettings(0.2, None, 0.0, 0.5, True))
        self._inputs, self._invalid = torch.zeros(1, len(self._others)), None
        self._options = first[:, None]
        if self._model.has_memory:
            self._sequences = Sequences(self._model.initial_state(2)[:, None], torch.ones(1, 1) > 0)
        self._constants = (action.numpy(), torch.zeros(1, len(COLUMNS)).numpy(), settings)
        self.forward(first)
        self.backward()

    @torch.no_grad()
    def forward(self, index: Tensor, own: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the metrics of a minibatch, ``[6] float64``."""
        if own:
            self._set_advantage(index, own["advantage"])
        self._evaluate(index)
        actor, critic = self._towers[0], self._towers[-1]
        if self._invalid is not None and self._categorical:
            actor.outputs[0].masked_fill_(self._invalid.index_select(0, index), _INVALID)
        parameters, parameters_gradient = actor.outputs[0].numpy(), actor.gradients[0].numpy()
        value, value_gradient = critic.outputs[-1].numpy(), critic.gradients[-1].numpy()
        action, columns, settings = self._constants
        metrics = torch.empty(len(METRICS), dtype=torch.float64)
        rows = (value[:, 0], action, index.numpy(), columns, settings)
        value_and_metrics = (value_gradient[:, 0], metrics.numpy())
        if self._categorical:
            categorical_gradient(parameters, *rows, parameters_gradient, *value_and_metrics)
        else:
            assert self._log_std.grad is not None
            log_std: Tensor = self._log_std
            if self._middle_and_half is not None:
                log_std = self._model.distribution.bounded_log_std()
            log_std_gradient = self._log_std.grad.numpy()
            gaussian_gradient(
                parameters,
                log_std.detach().numpy(),
                *rows,
                parameters_gradient,
                log_std_gradient,
                *value_and_metrics,
            )
            if self._middle_and_half is not None:
                middle, half = self._middle_and_half
                self._log_std.grad.mul_(1 - ((log_std - middle) / half).square())
        return metrics

    def _evaluate(self, index: Tensor) -> None:
        """Compute the outputs of all towers for some rows."""
        inputs = self._inputs.index_select(0, index)
        if self._sequences is not None:
            begins = self._sequences.of(index)
            for layer in chain.from_iterable(tower.memory for tower in self._towers):
                layer.begin(*begins)
        if self._options is not None:
            options = self._options.index_select(0, index)
            for first in chain.from_iterable(tower.wide for tower in self._towers):
                first.options = options
        for tower in self._towers:
            tower.forward(inputs)

    def _set_advantage(self, index: Tensor, advantage: Tensor) -> None:
        """Replace the advantages of some rows by standardised ones."""
        _, columns, settings = self._constants
        columns[index.numpy(), COLUMNS.index("advantage")] = advantage.numpy()
        settings[-1] = False

    @torch.no_grad()
    def backward(self) -> None:
        """Write the gradient of the last `forward`."""
        for tower in self._towers:
            tower.backward()

    def release(self) -> None:
        """Drop the batch."""
        self._inputs, self._options = _NOTHING, None
        self._sequences, self._invalid = None, None
        self._constants = (_NOTHING.numpy(),) * 3


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
