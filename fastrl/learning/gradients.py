"""Gradients of a loss: what the learner asks for, and how those of any loss are computed."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from fastrl.compiled import compiled_by_torch
from fastrl.errors import ConfigError
from fastrl.learning.algorithm import Algorithm, Loss, Scheduled
from fastrl.learning.batch import NO_BATCH, Batch, Minibatch
from fastrl.learning.parameters import FlatParameters
from fastrl.models.actor_critic import ActorCritic
from fastrl.models.policy import PolicyModel


class GradientEngine(Protocol):
    """Computes the loss of minibatches, and its gradient into a `FlatParameters`.

    Attributes:
        metrics: Names of what `forward` returns; known after the first one.
    """

    metrics: tuple[str, ...]

    def load(self, batch: Batch, scheduled: Scheduled) -> None:
        """Take the batch from which minibatches are drawn until `release`."""
        ...

    def forward(self, index: Tensor) -> Tensor:
        """Return what is reported about a minibatch, a number for each of ``metrics``.

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
    """Works for any loss of any `PolicyModel` on any device.

    Args:
        algorithm: Its loss.
        model: Its parameters must be those of ``parameters``.
        parameters: Where gradients go.
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
        self.metrics: tuple[str, ...] = ()
        self._algorithm, self._parameters, self._compiled = algorithm, parameters, compiled
        self._device = parameters.value.device
        self._policy = in_bfloat16(model, self._device) if bf16 else model
        self._loss = compiled_by_torch(self._evaluate) if compiled else self._evaluate
        self._total: Tensor | None = None

    def load(self, batch: Batch, scheduled: Scheduled) -> None:
        """Take the batch from which minibatches are drawn until `release`."""
        self._batch, self._scheduled = batch, scheduled
        if self._compiled:
            self._scheduled = {
                name: torch.tensor(number, dtype=torch.float32, device=self._device)
                for name, number in scheduled.items()
            }

    def forward(self, index: Tensor) -> Tensor:
        """Return what is reported about a minibatch."""
        loss = self._loss(self._batch, index, self._scheduled)
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
        """Let go of the batch, and of what was computed from it."""
        self._batch, self._total = NO_BATCH, None

    def _evaluate(self, batch: Batch, index: Tensor, scheduled: Scheduled) -> Loss:
        own = self._algorithm.whole(Minibatch(batch, index, scheduled))
        return self._algorithm.loss(Minibatch(batch, index, scheduled, own), self._policy)


class _InBfloat16:
    def __init__(self, policy: PolicyModel, device: torch.device, is_shared: bool) -> None:
        self._policy, self._device_type, self._is_shared = policy, device.type, is_shared

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._policy, name)

    def evaluate(self, *args: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
        with torch.autocast(self._device_type, torch.bfloat16, cache_enabled=not self._is_shared):
            outputs = self._policy.evaluate(*args)
        return tuple(output.float() for output in outputs)


def in_bfloat16(
    policy: PolicyModel, device: torch.device, *, is_shared: bool = False
) -> PolicyModel:
    """Return a policy that evaluates under autocast; what it returns is float32.

    Args:
        policy: Does the work.
        device: Where it is.
        is_shared: Whether several threads evaluate at once: what autocast keeps of converted
            weights would be shared among them.
    """
    return cast(PolicyModel, _InBfloat16(policy, device, is_shared))


def checked(
    algorithm: Algorithm[Any], loss: Loss, before: tuple[str, ...]
) -> tuple[tuple[str, ...], Tensor]:
    """Return the names of what is reported about a loss, the total first, and the numbers.

    Args:
        algorithm: Whose loss it is.
        loss: What its ``loss`` returned.
        before: The names of the loss before; empty if there was none.

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


_METHODS = ("forward", "evaluate", "_inputs", "_leaves")
_PARTS = (
    "normalizers", "actor_body", "critic_body", "actor_head", "critic_head", "distribution"
)  # fmt: skip


def own_forward(model: object) -> str | None:
    """Return what a model computes otherwise than `ActorCritic`; None if it computes the same.

    A subclass may have whatever else of its own.
    """
    name = type(model).__name__
    if not isinstance(model, ActorCritic):
        return f"{name} is not an ActorCritic"
    for method in _METHODS:
        if getattr(type(model), method) is not getattr(ActorCritic, method):
            return f"{name}.{method} is its own"
    for part in _PARTS:
        for module in getattr(model, part).modules() if getattr(model, part) is not None else ():
            if not _is_row_by_row(type(module)):
                return f"{name}.{part} has a {type(module).__name__}"
    return None


def _is_row_by_row(module: type[nn.Module]) -> bool:
    """Say whether a module is known to treat each row of a minibatch by itself."""
    known = module.__module__.startswith(("fastrl.models.", "torch.nn.modules."))
    return known and not issubclass(module, nn.modules.batchnorm._BatchNorm)
