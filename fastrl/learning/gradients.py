"""Gradients of a loss by autograd, and the parameters' update: clipping and optimisers.

All parameters are one vector, and so are their gradients: one operation clips or updates all.
torch's optimisers take 60 µs in Python for a step of 6 µs of a small network (64×64 MLP,
AMD EPYC); on the CPU these are one compiled call. `mlp_gradients`, `mlp_network`,
`sequence_gradients` and `shared_gradients` are faster engines for particular policies.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.adam import adam

from fastrl.config.algorithms import LearnerConfig
from fastrl.errors import ConfigError, FastrlError
from fastrl.jit import cached_njit, compiled_by_torch
from fastrl.learning.algorithm import NO_BATCH, Algorithm, Batch, Loss, Minibatch, Scheduled
from fastrl.models.policy import PolicyModel

Floats = NDArray[np.floating[Any]]

# Sums in any order and fused multiply-add let the compiler use vector registers. Numbers that are
# not finite stay so.
_FAST = {"reassoc", "contract"}


class GradientEngine(ABC):
    """Computes the loss of minibatches, and its gradient into a `FlatParameters`.

    Attributes:
        metrics: Names of the numbers that `forward` returns; empty before the first call.
    """

    metrics: tuple[str, ...] = ()

    @abstractmethod
    def load(self, batch: Batch, scheduled: Scheduled) -> None:
        """Set the batch from which minibatches are drawn until `release`."""

    @abstractmethod
    def forward(self, index: Tensor, own: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the metrics of a minibatch, a number for each of ``metrics``.

        Args:
            index: ``[n] int64``: rows of the batch, on its device.
            own: Result of `Algorithm.whole` for these rows as a part of a larger minibatch; None to
                call it.
        """

    @abstractmethod
    def backward(self) -> None:
        """Write the gradient of the last `forward`."""

    def run_batch(self, batch: Batch) -> Batch:
        """Return the batch from which all ranks draw the same minibatches."""
        return batch

    @abstractmethod
    def release(self) -> None:
        """Drop the batch, whose memory is the sampler's, and tensors computed from it."""


class AutogradEngine(GradientEngine):
    """Works for any loss of any `PolicyModel` on any device.

    Args:
        algorithm: Its loss.
        model: Its parameters must be those of ``parameters``.
        parameters: Vectors of the parameters and gradients.
        compiled: Run model and loss through ``torch.compile``, where that works.
        bf16: Run the model under autocast.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any],
        model: PolicyModel,
        parameters: FlatParameters,
        compiled: bool,
        bf16: bool,
    ) -> None:
        self._algorithm, self._parameters, self._compiled = algorithm, parameters, compiled
        self._device = parameters.value.device
        self._policy = in_bfloat16(model, self._device) if bf16 else model
        self._loss = compiled_by_torch(self._evaluate, self._device) if compiled else self._evaluate
        self._total: Tensor | None = None

    def load(self, batch: Batch, scheduled: Scheduled) -> None:
        """Set the batch; see `GradientEngine`."""
        self._batch, self._scheduled = batch, scheduled
        if self._compiled:
            self._scheduled = {
                name: torch.tensor(number, dtype=torch.float32, device=self._device)
                for name, number in scheduled.items()
            }

    def forward(self, index: Tensor, own: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the metrics of a minibatch; see `GradientEngine`."""
        if self._compiled and self._device.type == "cuda":
            # The next replay of a CUDA graph may overwrite the last loss.
            torch.compiler.cudagraph_mark_step_begin()
        loss = self._loss(self._batch, index, self._scheduled, own)
        self.metrics, numbers = checked(self._algorithm, loss, self.metrics)
        self._total = loss.total
        return numbers

    def backward(self) -> None:
        """Write the gradient of the last `forward`."""
        self._parameters.gradient.zero_()
        assert self._total is not None
        self._total.backward()
        self._total = None

    def release(self) -> None:
        """Drop the batch and tensors computed from it."""
        self._batch, self._total = NO_BATCH, None

    def _evaluate(
        self,
        batch: Batch,
        index: Tensor,
        scheduled: Scheduled,
        whole: Mapping[str, Tensor] | None,
    ) -> Loss:
        minibatch = minibatch_of(self._algorithm, batch, index, scheduled, whole)
        return self._algorithm.loss(minibatch, self._policy)


def minibatch_of(
    algorithm: Algorithm[Any],
    batch: Batch,
    index: Tensor,
    scheduled: Scheduled,
    whole: Mapping[str, Tensor] | None,
) -> Minibatch:
    """Return the input of the loss for some rows.

    Args:
        algorithm: Owner of the loss.
        batch: All rows.
        index: ``[n] int64``: rows of the batch.
        scheduled: See `Minibatch.scheduled`.
        whole: Result of `Algorithm.whole` for these rows; None to call it.
    """
    if whole is None:
        whole = algorithm.whole(Minibatch(batch, index, scheduled))
    return Minibatch(batch, index, scheduled, whole)


class _InBfloat16:
    def __init__(self, policy: PolicyModel, device: torch.device, is_shared: bool) -> None:
        self._policy, self._device_type, self._is_shared = policy, device.type, is_shared

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return self._widened(cast(Any, self._policy), *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return self._widened(self._policy.evaluate, *args, **kwargs)

    def _widened(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        with torch.autocast(self._device_type, torch.bfloat16, cache_enabled=not self._is_shared):
            outputs = method(*args, **kwargs)
        return tuple(output.float() for output in outputs)


def in_bfloat16(
    policy: PolicyModel, device: torch.device, *, is_shared: bool = False
) -> PolicyModel:
    """Return a policy that evaluates under autocast and returns float32.

    Args:
        policy: The policy.
        device: Device of the policy.
        is_shared: Whether several threads evaluate at once: autocast must not cache converted
            weights then, which would be shared among them.
    """
    return cast(PolicyModel, _InBfloat16(policy, device, is_shared))


def checked(
    algorithm: Algorithm[Any], loss: Loss, before: tuple[str, ...]
) -> tuple[tuple[str, ...], Tensor]:
    """Return the names of the metrics of a loss, the total first, and their values.

    Args:
        algorithm: Owner of the loss.
        loss: Result of its ``loss``.
        before: The names of the previous loss; empty if there was none.

    Raises:
        ConfigError: It is not a loss.
    """
    what = f"{type(algorithm).__name__}.loss"
    if not isinstance(loss, Loss):
        raise ConfigError(f"{what} must return Loss(total, metrics), got {type(loss).__name__}")
    numbers = {"loss": loss.total, **loss.metrics}
    names = tuple(numbers)
    if not before:
        _require_scalars(what, loss)
    elif names != before:
        raise ConfigError(
            f"{what} must report the same metrics each time: {', '.join(before)}; "
            f"got {', '.join(names)}"
        )
    with torch.no_grad():
        return names, torch.stack(list(numbers.values()))


def _require_scalars(what: str, loss: Loss) -> None:
    if "loss" in loss.metrics:
        raise ConfigError(f"{what}: a metric cannot have the name 'loss', which is the total's")
    for name, number in {"total": loss.total, **loss.metrics}.items():
        if not isinstance(number, Tensor) or number.shape:
            found = list(number.shape) if isinstance(number, Tensor) else type(number).__name__
            raise ConfigError(f"{what}: '{name}' must be a tensor [], got {found}")
    if not loss.total.requires_grad:
        raise ConfigError(f"{what}: the total does not depend on any parameter")


class FlatParameters:
    """Moves parameters and their gradients into two vectors, of which they become views.

    The model must not be moved to another device or dtype afterwards. A state dict may be
    loaded into it, since that copies.

    Args:
        parameters: Parameters of a model; those without gradients stay unchanged.

    Attributes:
        value: ``[P] float32``.
        gradient: ``[P] float32``.
        parameters: The parameters, in the order of the vectors.

    Raises:
        ConfigError: There are none, or they differ in dtype or device.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        kinds = {f"{p.dtype} on {p.device}" for p in self.parameters}
        if len(kinds) != 1:
            found = ", ".join(sorted(kinds)) or "none"
            raise ConfigError(
                f"the model needs parameters to learn, all of one dtype and device; found {found}"
            )
        self.value = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self.gradient = torch.zeros_like(self.value)
        sizes = [p.numel() for p in self.parameters]
        pieces = zip(self.value.split(sizes), self.gradient.split(sizes), strict=True)
        for parameter, (value, gradient) in zip(self.parameters, pieces, strict=True):
            parameter.data = value.view(parameter.shape)
            parameter.grad = gradient.view(parameter.shape)
        self._array = self.gradient.numpy() if is_compiled(self.gradient) else None

    def part(self, start: int, stop: int) -> FlatParameters:
        """Return the parameters from ``start`` to ``stop``, as views of these."""
        sizes = [p.numel() for p in self.parameters]
        first, last = sum(sizes[:start]), sum(sizes[:stop])
        part = copy(self)
        part.parameters = self.parameters[start:stop]
        part.value, part.gradient = self.value[first:last], self.gradient[first:last]
        part._array = None if self._array is None else self._array[first:last]
        return part

    def clip_gradient(self, max_norm: float | None) -> Tensor | float:
        """Scale the gradient down to a Euclidean norm; return the norm it had.

        Args:
            max_norm: None for no bound.

        Returns:
            A float on the CPU; elsewhere a tensor ``[]``, which is not waited for.
        """
        if self._array is not None:
            return _clip_kernel(self._array, math.inf if max_norm is None else max_norm)
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        if max_norm is not None:
            # As torch.nn.utils.clip_grad_norm_ does, without waiting for the device.
            self.gradient.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))
        return norm


class Optimizer(ABC):
    """Changes parameters by their gradient; keeps its state as tensors by name.

    Weight decay is decoupled from the gradient and its averages (Loshchilov and Hutter 2019,
    https://arxiv.org/abs/1711.05101, algorithm 2). It applies to all parameters, as in
    ``torch.optim.AdamW``: weights, biases and log standard deviations.
    """

    def __init__(self, parameters: FlatParameters, weight_decay: float, **state: Tensor) -> None:
        self._parameters, self._weight_decay, self._state = parameters, weight_decay, state

    def step(self, learning_rate: float) -> None:
        """Take one step along ``FlatParameters.gradient``."""
        if self._weight_decay:
            self._parameters.value.mul_(1 - learning_rate * self._weight_decay)
        self._descend(learning_rate)

    @abstractmethod
    def _descend(self, learning_rate: float) -> None:
        """Change the parameters by the gradient."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the state on which further steps depend."""
        return {name: tensor.clone() for name, tensor in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state of the same optimiser.

        Raises:
            FastrlError: The state belongs to another optimiser or another model.
        """
        wanted = {name: list(tensor.shape) for name, tensor in self._state.items()}
        found = {name: list(tensor.shape) for name, tensor in state.items()}
        if wanted != found:
            raise FastrlError(f"the optimiser's state does not fit: {found}, expected {wanted}")
        for name, tensor in self._state.items():
            tensor.copy_(state[name])


class Adam(Optimizer):
    """Kingma and Ba 2015 (https://arxiv.org/abs/1412.6980), algorithm 1, in one fused operation.

    Args:
        parameters: Parameters to change.
        eps: Added to the root of the second moment.
        betas: Decay per step of the first and the second moment.
        weight_decay: Makes it AdamW; see `Optimizer`.
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
        vectors = (parameters.value, parameters.gradient, *self._state.values())
        compiled = vectors if is_compiled(parameters.value) else ()
        self._arrays = [vector.reshape(-1).numpy() for vector in compiled]

    def _descend(self, learning_rate: float) -> None:
        if self._arrays:
            value, gradient, mean, square, step = self._arrays
            _adam_kernel(
                value, gradient, mean, square, step, learning_rate, *self._betas, self._eps
            )
            return
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


class RMSprop(Optimizer):
    """RMSprop (Tieleman and Hinton 2012) as in TensorFlow, for which A2C's settings were found.

    It differs from PyTorch's in that epsilon is inside the root and that the running square starts
    at 1, which makes the first steps small.

    Args:
        parameters: Parameters to change.
        eps: Added to the running square, inside the root.
        weight_decay: See `Optimizer`.
    """

    _DECAY = 0.99

    def __init__(self, parameters: FlatParameters, eps: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, weight_decay, square=torch.ones_like(parameters.value))
        self._eps = eps

    def _descend(self, learning_rate: float) -> None:
        gradient, square = self._parameters.gradient, self._state["square"]
        square.mul_(self._DECAY).addcmul_(gradient, gradient, value=1 - self._DECAY)
        root = square.add(self._eps).sqrt_()
        self._parameters.value.addcdiv_(gradient, root, value=-learning_rate)


def build_optimizer(parameters: FlatParameters, config: LearnerConfig) -> Optimizer:
    """Return the optimiser that an algorithm's section asks for."""
    if config.optimizer == "rmsprop":
        return RMSprop(parameters, config.optimizer_eps, config.weight_decay)
    return Adam(parameters, config.optimizer_eps, config.adam_betas, config.weight_decay)


def _clip(gradient: Floats, max_norm: float) -> float:
    """Scale a gradient down to a Euclidean norm; return the norm it had.

    Args:
        gradient: ``[P] float32``, changed.
        max_norm: Infinite for no bound.
    """
    squares = np.float32(0.0)
    for i in range(len(gradient)):
        squares += gradient[i] * gradient[i]
    norm = math.sqrt(squares)
    # As torch.nn.utils.clip_grad_norm_ does.
    factor = np.float32(max_norm / (norm + 1e-6))
    if not factor >= 1:
        for i in range(len(gradient)):
            gradient[i] *= factor
    return norm


def _adam(
    value: Floats,
    gradient: Floats,
    mean: Floats,
    square: Floats,
    step: Floats,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Take a step of Adam (Kingma and Ba 2015, algorithm 1).

    Args:
        value: ``[P] float32``, changed.
        gradient: ``[P] float32``.
        mean: ``[P] float32``: first moment, changed.
        square: ``[P] float32``: second moment, changed.
        step: ``[1] float32``: steps taken so far, changed.
        rate: Learning rate.
        beta1: Decay of the first moment per step.
        beta2: Decay of the second.
        eps: Added to the root of the second moment.
    """
    step[0] += 1
    size = np.float32(rate / (1 - beta1 ** step[0]))
    root = np.float32(math.sqrt(1 - beta2 ** step[0]))
    keep1, keep2 = np.float32(1 - beta1), np.float32(beta2)
    add2, least = np.float32(1 - beta2), np.float32(eps)
    for i in range(len(value)):
        slope = gradient[i]
        mean[i] += keep1 * (slope - mean[i])
        square[i] = keep2 * square[i] + add2 * slope * slope
        value[i] -= size * mean[i] / (np.sqrt(square[i]) / root + least)


_clip_kernel = cached_njit(_clip, fastmath=_FAST)
_adam_kernel = cached_njit(_adam, fastmath=_FAST, error_model="numpy")


def is_compiled(vector: Tensor) -> bool:
    """Return whether the compiled kernels support this vector."""
    return vector.device.type == "cpu" and vector.dtype == torch.float32
