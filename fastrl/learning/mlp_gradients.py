"""Gradients of small MLP policies on the CPU, without autograd.

With 64 units per layer most of the time goes into starting operations, so this starts few: three
per layer forward, four backward, all into memory that is kept, and one call for distribution,
loss and their derivatives. It takes less than half the time of autograd, and a test holds it
against that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.learning.algorithm import Algorithm, ObjectiveSettings, Scheduled
from fastrl.learning.batch import Batch
from fastrl.learning.gradients import own_forward
from fastrl.learning.kernels import COLUMNS, METRICS, categorical_gradient, gaussian_gradient
from fastrl.models.action_parts import ActionPart, Categoricals, Gaussians
from fastrl.models.actor_critic import ActorCritic
from fastrl.models.networks import Body, VectorEncoder
from fastrl.models.policy import PolicyModel

_NOTHING = torch.empty(0)
_MINUS_ONE = torch.tensor(-1.0)


def obstacle(algorithm: Algorithm[Any], model: PolicyModel) -> str | None:
    """Return why `MLPEngine` cannot be used; None if it can.

    The loss must be the one that the kernels know. The model must compute what an `ActorCritic`
    computes, in float32 on the CPU, over vectors of numbers, with tanh or ReLU, and one action
    leaf: a single categorical, or a plain Gaussian whose standard deviation does not depend on the
    state.
    """
    if algorithm.known_objective() is None:
        return f"the loss of {type(algorithm).__name__} is its own"
    own = own_forward(model)
    if own is not None:
        return own
    assert isinstance(model, ActorCritic)
    return _foreign_layer(model) or _foreign_parameter(model)


def _foreign_layer(model: ActorCritic) -> str | None:
    bodies = [model.actor_body, *([model.critic_body] if model.critic_body else [])]
    encoders = [encoder for body in bodies for encoder in body.encoders]
    layers = [layer for body in bodies for layer in body.mlp]
    heads = (model.actor_head, model.critic_head)
    parts = list(model.distribution.parts.values())
    if any(type(encoder) is not VectorEncoder for encoder in encoders):
        return "observations are not all vectors of numbers"
    if any(type(layer) not in (nn.Linear, nn.Tanh, nn.ReLU) for layer in layers):
        return "the activation is neither tanh nor relu"
    if any(type(head) is not nn.Linear for head in heads):
        return "a head is not a single linear layer"
    if len(parts) != 1 or type(parts[0]) not in (Categoricals, Gaussians):
        return "the action is neither one choice nor one unsquashed Box"
    return _foreign_part(parts[0])


def _foreign_part(part: ActionPart) -> str | None:
    if isinstance(part, Categoricals) and len(part.sizes) != 1:
        return "the action is several choices"
    if part.state_std:
        return "standard deviations depend on the state, as model.log_std says"
    return None


def _foreign_parameter(model: ActorCritic) -> str | None:
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in model.parameters()):
        return "parameters are not all float32 on the CPU"
    if not all(p.requires_grad for p in model.parameters()):
        return "some parameters are frozen"
    return None


@dataclass(frozen=True)
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

    def forward(self, inputs: Tensor, output: Tensor) -> None:
        if self.activation is nn.Tanh:
            # tanh(x) = 2 / (1 + exp(-2x)) - 1 to within 2e-7; torch's own takes 10 times as long.
            torch.addmm(self.bias, inputs, self.weight.t(), beta=2, alpha=2, out=output)
            torch.add(_MINUS_ONE, output.sigmoid_(), alpha=2, out=output)
            return
        torch.addmm(self.bias, inputs, self.weight.t(), out=output)
        if self.activation is nn.ReLU:
            output.relu_()

    def backward(self, inputs: Tensor, output: Tensor, gradient: Tensor) -> None:
        """Write the gradients of the parameters; turn ``gradient`` to that before activation."""
        if self.activation is nn.Tanh:
            torch.ops.aten.tanh_backward.grad_input(gradient, output, grad_input=gradient)
        elif self.activation is nn.ReLU:
            torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)
        torch.mm(gradient.t(), inputs, out=self.weight_gradient)
        torch.sum(gradient, 0, out=self.bias_gradient)


@dataclass(frozen=True)
class _Memory:
    """Outputs ``[n, out]`` of the layers of a tower and the gradients by them."""

    outputs: list[Tensor]
    gradients: list[Tensor]

    @classmethod
    def of(cls, layers: Sequence[_Layer], rows: int) -> _Memory:
        outputs, gradients = (
            [torch.empty(rows, len(layer.bias)) for layer in layers] for _ in range(2)
        )
        return cls(outputs, gradients)


class _Tower:
    """A body and the heads on it; keeps its memory for each size of minibatch.

    Attributes:
        outputs: Of each head in the last `forward`, ``[n, out]``.
        gradients: By these; to be written before `backward`.
    """

    def __init__(self, body: Body, heads: Sequence[nn.Linear]) -> None:
        modules = list(body.mlp)
        self._depth = len(modules) // 2
        self._layers = [
            _Layer.of(linear, activation)
            for linear, activation in zip(modules[::2], modules[1::2], strict=True)
            if isinstance(linear, nn.Linear)
        ]
        self._layers += [_Layer.of(head) for head in heads]
        self._memory: dict[int, _Memory] = {}

    def forward(self, inputs: Tensor) -> None:
        """Compute ``outputs`` of ``inputs [n, features]``."""
        rows, depth = len(inputs), self._depth
        if rows not in self._memory:
            self._memory[rows] = _Memory.of(self._layers, rows)
        memory = self._last = self._memory[rows]
        self._inputs = [inputs, *memory.outputs[:depth]]
        for layer, source, output in zip(self._layers, self._inputs, memory.outputs, strict=False):
            layer.forward(source, output)
        for layer, output in zip(
            self._layers[depth + 1 :], memory.outputs[depth + 1 :], strict=True
        ):
            layer.forward(self._inputs[depth], output)
        self.outputs, self.gradients = memory.outputs[depth:], memory.gradients[depth:]

    def backward(self) -> None:
        """Write the gradients of all parameters."""
        gradients, depth = self._last.gradients, self._depth
        for i in range(len(self._layers) - 1, -1, -1):
            level = min(i, depth)
            layer, source = self._layers[i], self._inputs[level]
            layer.backward(source, self._last.outputs[i], gradients[i])
            if level and i == len(self._layers) - 1:
                torch.mm(gradients[i], layer.weight, out=gradients[level - 1])
            elif level and i >= depth:
                gradients[depth - 1].addmm_(gradients[i], layer.weight)
            elif level:
                torch.mm(gradients[i], layer.weight, out=gradients[i - 1])


class MLPEngine:
    """Computes what `AutogradEngine` computes, where there is no `obstacle`.

    Args:
        algorithm: Says the settings of the objective.
        model: Its parameters must be views of a `FlatParameters`, into which gradients go.
    """

    metrics: tuple[str, ...] = METRICS

    def __init__(self, algorithm: Algorithm[Any], model: ActorCritic) -> None:
        settings_of = algorithm.known_objective()
        assert settings_of is not None
        self._model, self._settings_of = model, settings_of
        if model.critic_body is None:
            tower = _Tower(model.actor_body, (model.actor_head, model.critic_head))
            self._towers = [tower]
        else:
            self._towers = [
                _Tower(model.actor_body, (model.actor_head,)),
                _Tower(model.critic_body, (model.critic_head,)),
            ]
        ((self._leaf, part),) = model.distribution.parts.items()
        self._categorical = isinstance(part, Categoricals)
        self._log_std = model.distribution.log_std
        self._middle_and_half = model.distribution.middle_and_half
        self._compile(part)

    @torch.no_grad()
    def load(self, batch: Batch, scheduled: Scheduled) -> None:
        """Take the batch from which minibatches are drawn until `release`.

        Observations are normalised here, once, since their statistics stay the same meanwhile.
        """
        encoded = [
            encoder(normalizer(leaf))
            for encoder, normalizer, leaf in zip(
                self._model.actor_body.encoders,
                self._model.normalizers,
                batch.observation.values(),
                strict=True,
            )
        ]
        self._inputs = encoded[0] if len(encoded) == 1 else torch.cat(encoded, dim=1)
        action = batch.action[self._leaf]
        action = action.flatten() if self._categorical else action.reshape(len(action), -1)
        columns = torch.stack([batch.fields[name] for name in COLUMNS], dim=-1)
        settings = _as_array(self._settings_of(scheduled))
        self._constants = (action.numpy(), columns.numpy(), settings)

    def _compile(self, part: ActionPart) -> None:
        """Run the kernel once, so that the first update takes no longer than the others."""
        encoders = self._model.actor_body.encoders
        widths = [e.num_features for e in encoders if isinstance(e, VectorEncoder)]
        first = torch.zeros(1, dtype=torch.int64)
        action = first if self._categorical else torch.zeros(1, part.num_noise)
        settings = _as_array(ObjectiveSettings(0.2, None, 0.0, 0.5, True))
        self._inputs = torch.zeros(1, sum(widths))
        self._constants = (action.numpy(), torch.zeros(1, len(COLUMNS)).numpy(), settings)
        self.forward(first)

    @torch.no_grad()
    def forward(self, index: Tensor) -> Tensor:
        """Return what is reported about a minibatch, ``[6] float64``."""
        inputs = self._inputs.index_select(0, index)
        for tower in self._towers:
            tower.forward(inputs)
        actor, critic = self._towers[0], self._towers[-1]
        parameters, parameters_gradient = actor.outputs[0].numpy(), actor.gradients[0].numpy()
        value, value_gradient = critic.outputs[-1].numpy(), critic.gradients[-1].numpy()
        action, columns, settings = self._constants
        metrics = torch.empty(len(METRICS), dtype=torch.float64)
        if self._categorical:
            categorical_gradient(
                parameters,
                value[:, 0],
                action,
                index.numpy(),
                columns,
                settings,
                parameters_gradient,
                value_gradient[:, 0],
                metrics.numpy(),
            )
        else:
            assert self._log_std.grad is not None
            log_std: Tensor = self._log_std
            if self._middle_and_half is not None:
                log_std = self._model.distribution.bounded_log_std()
            gaussian_gradient(
                parameters,
                log_std.detach().numpy(),
                value[:, 0],
                action,
                index.numpy(),
                columns,
                settings,
                parameters_gradient,
                self._log_std.grad.numpy(),
                value_gradient[:, 0],
                metrics.numpy(),
            )
            if self._middle_and_half is not None:
                middle, half = self._middle_and_half
                self._log_std.grad.mul_(1 - ((log_std - middle) / half).square())
        return metrics

    @torch.no_grad()
    def backward(self) -> None:
        """Write the gradient of the last `forward`."""
        for tower in self._towers:
            tower.backward()

    def release(self) -> None:
        """Let go of the batch."""
        self._inputs = _NOTHING
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
