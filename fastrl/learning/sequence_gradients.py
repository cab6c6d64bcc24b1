"""Gradients of small MLP policies with GRU or LSTM on the CPU, without autograd.

With 64 units per layer most of the time goes into starting operations, so this module starts few:
three per layer forward and four backward, all in preallocated memory, and one call for the
distribution, the loss and their derivatives. Rows are ordered by time, as the loops need them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fastrl.learning.algorithm import Batch, Scheduled, Sequences
from fastrl.learning.mlp_gradients import KnownLossEngine
from fastrl.learning.mlp_pass import INVALID
from fastrl.learning.objective_kernels import objective_gradient
from fastrl.models import recurrent_loops as loops
from fastrl.models.networks import Body
from fastrl.models.policy import ActorCritic
from fastrl.models.recurrent import Core, RecurrentCore

_NOTHING = torch.empty(0)
_MINUS_ONE = torch.tensor(-1.0)


@dataclass
class _SequenceLayer:
    """A linear layer and its activation; all tensors are views of a `FlatParameters`.

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
    def of(cls, linear: nn.Linear, activation: nn.Module | None = None) -> _SequenceLayer:
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
        """Write the gradient of weights and bias."""
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
class _WideLayer(_SequenceLayer):
    """A first layer with wide choices, which adds up the weights of their chosen options.

    Attributes:
        others: Inputs that belong to other leaves, ``[in] int64``.
        options: Inputs that are 1 in each row, ``[n, choices] int64``; set before `forward`.
    """

    others: Tensor = _NOTHING
    options: Tensor = _NOTHING

    def sums(self, inputs: Tensor, scale: int, output: Tensor) -> None:
        """Write the sums; see `_SequenceLayer`."""
        of_others = self.weight.index_select(1, self.others).t()
        torch.addmm(self.bias, inputs, of_others, beta=scale, alpha=scale, out=output)
        for columns in self.options.unbind(1):
            output.add_(self.weight.index_select(1, columns).t(), alpha=scale)

    def weigh(self, inputs: Tensor, gradient: Tensor) -> None:
        """Write the gradient of the weights; see `_SequenceLayer`."""
        self.weight_gradient.zero_().index_copy_(1, self.others, gradient.t() @ inputs)
        for columns in self.options.unbind(1):
            self.weight_gradient.index_add_(1, columns, gradient.t())


class _RecurrentSequenceLayer:
    """A layer of GRU or LSTM, with the methods of `_SequenceLayer`.

    Args:
        layers: The module of all recurrent layers.
        number: Index of the layer.
        first: First column of the module's state within the policy's state.

    Attributes:
        weight: ``[gates · H, in]``: weight of the inputs.
        width: H.
    """

    def __init__(self, layers: nn.RNNBase, number: int, first: int) -> None:
        parameters = layers.all_weights[number]
        self.weight, self._recurrent, self._bias, self._recurrent_bias = (
            parameter.detach() for parameter in parameters
        )
        self._gradients = [parameter.grad for parameter in parameters]
        self._kind = loops.LSTM if isinstance(layers, nn.LSTM) else loops.GRU
        size, distance = layers.hidden_size, layers.num_layers * layers.hidden_size
        starts = [first + number * size + part * distance for part in range(self._kind)]
        self._columns = [slice(start, start + size) for start in starts]
        self.width = size
        self._memory: dict[torch.Size, tuple[loops.Loop, Tensor]] = {}

    def begin(self, state: Tensor, keep: Tensor) -> None:
        """Set the states before each sequence and their ``keep``; see `Sequences.of`."""
        length, rows = keep.shape
        if keep.shape not in self._memory:
            loop = loops.Loop(self._kind, length, rows, self.width)
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
        outputs: Outputs of each head in the last `forward`, ``[n, out]``.
        gradients: Gradients by the outputs, written before `backward`.
        wide: The first layer, if it has wide choices.
        memory: The recurrent layers.
    """

    def __init__(self, model: ActorCritic, body: Body, core: Core | None, *heads: Any) -> None:
        modules = list(body.mlp)
        self._layers: list[_SequenceLayer | _RecurrentSequenceLayer] = [
            (_WideLayer if body.gathers and linear is modules[0] else _SequenceLayer).of(
                linear, activation
            )
            for linear, activation in zip(modules[::2], modules[1::2], strict=True)
            if isinstance(linear, nn.Linear)
        ]
        self.wide = [layer for layer in self._layers if isinstance(layer, _WideLayer)]
        self.memory: list[_RecurrentSequenceLayer] = []
        if isinstance(core, RecurrentCore):
            total = sum(each.state_size for each in model.cores)
            first = 0 if core is model.actor_core else total - core.state_size
            depth = range(core.layers.num_layers)
            self.memory = [_RecurrentSequenceLayer(core.layers, number, first) for number in depth]
        self._layers += self.memory
        self._depth = len(self._layers)
        self._layers += [_SequenceLayer.of(head) for head in heads]
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


class SequenceGradientEngine(KnownLossEngine):
    """Computes the same as `AutogradEngine`, for policies with GRU or LSTM."""

    def _build(self, model: ActorCritic) -> None:
        actor = model, model.actor_body, model.actor_core, model.actor_head
        if model.critic_body is None:
            self._towers = [_Tower(*actor, model.critic_head)]
        else:
            self._towers = [
                _Tower(*actor),
                _Tower(model, model.critic_body, model.critic_core, model.critic_head),
            ]
        for layer in chain.from_iterable(tower.wide for tower in self._towers):
            layer.others = self._others
        # For the run of `_compile`.
        self._sequences = Sequences(model.initial_state(2)[:, None], torch.ones(1, 1) > 0)

    def load(self, batch: Batch, scheduled: Scheduled) -> None:
        """Take a batch; see `GradientEngine`."""
        super().load(batch, scheduled)
        assert batch.sequences is not None
        self._sequences = batch.sequences

    @torch.no_grad()
    def _compute(self, index: Tensor, log_std: Tensor, metrics: Tensor) -> None:
        self._evaluate(index)
        actor, critic = self._towers[0], self._towers[-1]
        if self._valid is not None:
            actor.outputs[0].masked_fill_(~self._valid.index_select(0, index), INVALID)
        assert self._log_std.grad is not None
        objective_gradient(
            actor.outputs[0].numpy(),
            log_std.detach().numpy(),
            critic.outputs[-1][:, 0].numpy(),
            self._action.numpy(),
            index.numpy(),
            self._columns.numpy(),
            self._settings,
            actor.gradients[0].numpy(),
            self._log_std.grad.numpy(),
            critic.gradients[-1][:, 0].numpy(),
            metrics.numpy(),
        )

    def _evaluate(self, index: Tensor) -> None:
        """Compute the outputs of all towers for some rows."""
        inputs = self._inputs.index_select(0, index)
        begins = self._sequences.of(index)
        for layer in chain.from_iterable(tower.memory for tower in self._towers):
            layer.begin(*begins)
        if self._options is not None:
            options = self._options.index_select(0, index)
            for first in chain.from_iterable(tower.wide for tower in self._towers):
                first.options = options
        for tower in self._towers:
            tower.forward(inputs)

    @torch.no_grad()
    def backward(self) -> None:
        """Write the gradient of the last `forward`."""
        for tower in self._towers:
            tower.backward()
