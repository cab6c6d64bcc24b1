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
    """Holds the state by name."""

    def __init__(self, parameters: FlatParameters, **state: Tensor) -> None:
        self._parameters = parameters
        self._state = state

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
    """

    def __init__(self, parameters: FlatParameters, eps: float) -> None:
        super().__init__(
            parameters,
            mean=torch.zeros_like(parameters.value),
            square=torch.zeros_like(parameters.value),
            step=torch.zeros((), device=parameters.value.device),
        )
        self._eps = eps

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Take one step along the gradient."""
        adam(
            [self._parameters.value],
            [self._parameters.gradient],
            [self._state["mean"]],
            [self._state["square"]],
            [],
            [self._state["step"]],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
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
    """

    _DECAY = 0.99

    def __init__(self, parameters: FlatParameters, eps: float) -> None:
        super().__init__(parameters, square=torch.ones_like(parameters.value))
        self._eps = eps

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Take one step along the gradient."""
        gradient, square = self._parameters.gradient, self._state["square"]
        square.mul_(self._DECAY).addcmul_(gradient, gradient, value=1 - self._DECAY)
        root = square.add(self._eps).sqrt_()
        self._parameters.value.addcdiv_(gradient, root, value=-learning_rate)


OPTIMIZERS: Mapping[str, type[Adam | RMSprop]] = {"adam": Adam, "rmsprop": RMSprop}
"""Optimisers by their name in the configuration."""
