"""Optimisers over one vector of parameters.

torch's optimisers spend 60 µs of Python on a step that takes 6 µs for a small network (64×64 MLP,
AMD EPYC); these have nothing to look up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam

from fastrl.config.algorithms import LearnerConfig
from fastrl.errors import FastrlError
from fastrl.learning.parameters import FlatParameters


class Optimizer(Protocol):
    """Changes parameters by their gradient."""

    def step(self, learning_rate: float) -> None:
        """Take one step along ``FlatParameters.gradient``."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of what the next steps depend on."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of the same optimiser.

        Raises:
            FastrlError: It is another optimiser's, or another model's.
        """
        ...


class _Optimizer:
    """Holds the state by name, and shrinks parameters.

    Weight decay is decoupled from the gradient and its averages (Loshchilov and Hutter 2019,
    https://arxiv.org/abs/1711.05101, algorithm 2). It applies to all parameters, as in
    ``torch.optim.AdamW``: weights, biases and log standard deviations.
    """

    def __init__(self, parameters: FlatParameters, weight_decay: float, **state: Tensor) -> None:
        self._parameters = parameters
        self._weight_decay = weight_decay
        self._state = state

    def _shrink(self, learning_rate: float) -> None:
        if self._weight_decay:
            self._parameters.value.mul_(1 - learning_rate * self._weight_decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of what the next steps depend on."""
        return {name: tensor.clone() for name, tensor in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of the same optimiser; see `Optimizer`."""
        wanted = {name: list(tensor.shape) for name, tensor in self._state.items()}
        found = {name: list(tensor.shape) for name, tensor in state.items()}
        if wanted != found:
            raise FastrlError(f"the optimiser's state does not fit: {found}, expected {wanted}")
        for name, tensor in self._state.items():
            tensor.copy_(state[name])


class Adam(_Optimizer):
    """Kingma and Ba 2015 (https://arxiv.org/abs/1412.6980), algorithm 1, in one fused operation.

    Args:
        parameters: What to change.
        eps: Added to the root of the second moment.
        betas: Decay per step of the first and the second moment.
        weight_decay: Makes it AdamW; see `_Optimizer`.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        eps: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            parameters,
            weight_decay,
            mean=torch.zeros_like(parameters.value),
            square=torch.zeros_like(parameters.value),
            step=torch.zeros((), device=parameters.value.device),
        )
        self._eps, self._betas = eps, betas

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Take one step along the gradient."""
        self._shrink(learning_rate)
        adam(
            [self._parameters.value],
            [self._parameters.gradient],
            [self._state["mean"]],
            [self._state["square"]],
            [],
            [self._state["step"]],
            fused=True,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=learning_rate,
            weight_decay=0.0,
            eps=self._eps,
            maximize=False,
        )


class RMSprop(_Optimizer):
    """RMSprop (Tieleman and Hinton 2012) as in TensorFlow, on which A2C's settings were found.

    It differs from PyTorch's in that epsilon is inside the root and that the running square starts
    at 1, which makes the first steps small.

    Args:
        parameters: What to change.
        eps: Added to the running square, inside the root.
        weight_decay: See `_Optimizer`.
    """

    _DECAY = 0.99

    def __init__(self, parameters: FlatParameters, eps: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, weight_decay, square=torch.ones_like(parameters.value))
        self._eps = eps

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Take one step along the gradient."""
        self._shrink(learning_rate)
        gradient, square = self._parameters.gradient, self._state["square"]
        square.mul_(self._DECAY).addcmul_(gradient, gradient, value=1 - self._DECAY)
        root = square.add(self._eps).sqrt_()
        self._parameters.value.addcdiv_(gradient, root, value=-learning_rate)


def build_optimizer(parameters: FlatParameters, config: LearnerConfig) -> Optimizer:
    """Return the optimiser that an algorithm's section asks for."""
    if config.optimizer == "rmsprop":
        return RMSprop(parameters, config.optimizer_eps, config.weight_decay)
    return Adam(parameters, config.optimizer_eps, config.adam_betas, config.weight_decay)
