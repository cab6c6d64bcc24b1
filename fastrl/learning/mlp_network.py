"""Gradients of any loss over a small MLP policy on the CPU, with a compiled network.

`mlp_pass` computes the outputs of the network, and the gradient of its weights from that of the
outputs. The loss is written in torch, and differentiated by autograd or, with
``algorithm.compile``, by a program of ``torch.compile``. Tests compare both with plain autograd.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import grad_and_value

from fastrl.errors import one_line
from fastrl.jit import own_copy
from fastrl.learning import mlp_pass as kernel
from fastrl.learning.algorithm import Algorithm, Batch, Loss, Minibatch, Scheduled
from fastrl.learning.gradients import AutogradEngine, FlatParameters, checked, minibatch_of
from fastrl.learning.mlp_gradients import MLPProgram, encoded, gradient_of, why_not_described
from fastrl.models.distributions import ActionDistribution
from fastrl.models.policy import ActorCritic, PolicyModel

_LOGGER = logging.getLogger(__name__)
_NOTHING = torch.empty(0)
_Given = tuple[Batch, Tensor, Scheduled, Mapping[str, Tensor] | None]
"""Batch, rows, scheduled numbers, and the result of `Algorithm.whole` for the rows, if known."""


def why_not_network(model: PolicyModel) -> str | None:
    """Return why `MLPNetworkEngine` cannot be used; None if it can."""
    why = why_not_described(model)
    if why is None and cast(ActorCritic, model).has_memory:
        return "the policy has a memory"
    return why


class MLPNetworkEngine(AutogradEngine):
    """Computes the same as `AutogradEngine`, if `why_not_network` returns None.

    The outputs of the network are leaves of autograd. A loss may differentiate the network itself,
    as a penalty on gradients does; if the first minibatch shows that it does, all is computed by
    autograd.

    Args:
        algorithm: Its loss.
        model: Its parameters must be those of ``parameters``.
        parameters: Vectors of the parameters and gradients.
        compiled: Run the loss and its gradient through ``torch.compile``, where that works.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any],
        model: ActorCritic,
        parameters: FlatParameters,
        compiled: bool = False,
    ) -> None:
        super().__init__(algorithm, model, parameters, compiled=False, bf16=False)
        self._compiled, self._model = compiled, model
        self._network = _Network(model, parameters.gradient, has_value=algorithm.uses_value)
        self._program: Callable[..., Any] | None = None
        self._is_differentiated: bool | None = None
        self._inputs: tuple[Tensor, Tensor | None] = _NOTHING, None
        self._index, self._leaves = _NOTHING, cast(tuple[Tensor, ...], ())
        self._by_known: list[Tensor] = []

    def load(self, batch: Batch, scheduled: Scheduled) -> None:
        """Set the batch; normalise its observations once, as their statistics stay the same."""
        super().load(batch, scheduled)
        self._inputs = encoded(self._model, self._model._leaves(batch.observation)[1])

    def forward(self, index: Tensor, own: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the metrics of a minibatch; see `GradientEngine`."""
        given = self._batch, index, self._scheduled, own
        if self._is_differentiated is None:
            self._is_differentiated = self._differentiates_network(given)
            if self._is_differentiated and self._compiled:
                self._give_up("it differentiates the network")
        if self._is_differentiated:
            return super().forward(index, own)
        known, self._index = self._network.outputs(*self._inputs, index), index
        # Names and shapes of the first loss are checked outside of a compiled program.
        is_compiled = self._compiled and self.metrics
        numbers = self._by_program(given, known) if is_compiled else None
        if numbers is None:
            self._leaves = tuple(output.requires_grad_() for output in known)
            loss = self._loss_of(given, self._leaves)
            self.metrics, numbers = checked(self._algorithm, loss, self.metrics)
            self._total = loss.total
        return numbers

    def backward(self) -> None:
        """Write the gradient of the last `forward`."""
        if self._total is not None:
            super().backward()
            by_known = [leaf.grad for leaf in self._leaves]
        else:
            self._parameters.gradient.zero_()
            by_known = [*self._by_known[:2]]
            for gradient in self._by_known[2:]:
                gradient_of(self._model.distribution.log_std).copy_(gradient)
        if by_known:
            by_outputs, by_values = by_known
            by_values = by_values if self._network.has_value else None
            self._network.add_gradient(*self._inputs, self._index, by_outputs, by_values)
        self._leaves, self._by_known = (), []

    def release(self) -> None:
        """Drop the batch and tensors computed from it."""
        super().release()
        self._inputs, self._index = (_NOTHING, None), _NOTHING
        self._leaves, self._by_known = (), []

    def _differentiates_network(self, given: _Given) -> bool:
        """Return whether the loss asks autograd for gradients that pass through the network."""
        found: list[Tensor] = []

        def watch(
            _: nn.Module,
            inputs: tuple[Any, ...],
            given: dict[str, Any],
            outputs: tuple[Tensor, ...],
        ) -> None:
            # Gradients by observations are computed by the plain network in any case.
            observation = [*inputs, *given.values()][0]
            if not any(leaf.requires_grad for leaf in observation.values()):
                for output in filter(lambda each: each.requires_grad, outputs):
                    output.register_hook(found.append)

        watching = self._model.register_forward_hook(watch, with_kwargs=True)
        try:
            with torch.random.fork_rng(devices=[]):
                minibatch = minibatch_of(self._algorithm, *given)
                self._algorithm.loss(minibatch, self._model)
        finally:
            watching.remove()
        return bool(found)

    def _loss_of(self, given: _Given, known: tuple[Tensor, ...]) -> Loss:
        """Return the loss as a function of known outputs; see `_CompiledPolicy`."""
        minibatch = minibatch_of(self._algorithm, *given)
        policy = _CompiledPolicy(self._model, self._network, minibatch, known)
        return self._algorithm.loss(minibatch, cast(PolicyModel, policy))

    def _differentiate(
        self, given: _Given, known: tuple[Tensor, ...]
    ) -> tuple[tuple[str, ...], Tensor, tuple[Tensor, ...]]:
        """Return the names of the metrics, their values, and the gradient by the known outputs."""
        names = self.metrics

        def total(*known: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal names
            loss = self._loss_of(given, known)
            names, numbers = checked(self._algorithm, loss, names)
            return loss.total, numbers

        of_all = tuple(range(len(known)))
        gradients, (_, numbers) = grad_and_value(total, of_all, has_aux=True)(*known)
        return names, numbers, gradients

    def _by_program(self, given: _Given, known: tuple[Tensor, ...]) -> Tensor | None:
        """Return the metrics and keep the gradient; return None if torch cannot compile both."""
        log_std = self._model.distribution.log_std
        if self._program is None and self._reads_parameters(given, known):
            self._give_up("it reads parameters, or evaluates the policy for other observations")
            return None
        try:
            if self._program is None:
                self._program = torch.compile(own_copy(self._differentiate), fullgraph=True)
            if log_std.numel() and log_std.requires_grad:
                known = *known, log_std.detach()
            with torch.no_grad():
                self.metrics, numbers, gradients = self._program(given, known)
        # Any exception, since torch runs the code of the loss while it compiles.
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {one_line(error, 130)}")
            return None
        self._by_known = list(gradients)
        return cast(Tensor, numbers)

    def _reads_parameters(self, given: _Given, known: tuple[Tensor, ...]) -> bool:
        """Return whether the loss depends on parameters other than through the known outputs."""
        log_std = self._model.distribution.log_std
        others = [self._network.anchor, *self._parameters.parameters]
        others = [each for each in others if each is not log_std]
        with torch.random.fork_rng(devices=[]):
            leaves = tuple(output.detach().requires_grad_() for output in known)
            total = self._loss_of(given, leaves).total
        found = torch.autograd.grad(total, others, allow_unused=True)
        return any(gradient is not None for gradient in found)

    def _give_up(self, why: str) -> None:
        """Differentiate the loss by autograd from now on."""
        self._compiled = False
        what = f"{type(self._algorithm).__name__}.loss"
        _LOGGER.warning("torch cannot compile %s, which runs uncompiled: %s", what, why)


class _Distribution:
    """A distribution with other log standard deviations.

    Args:
        distribution: The distribution.
        log_std: Replaces its log standard deviations.
    """

    def __init__(self, distribution: ActionDistribution, log_std: Tensor) -> None:
        self._distribution, self.log_std = distribution, log_std

    def __getattr__(self, name: str) -> Any:
        return getattr(self._distribution, name)

    evaluate = ActionDistribution.evaluate
    log_prob = ActionDistribution.log_prob
    entropy = ActionDistribution.entropy
    bounded_log_std = ActionDistribution.bounded_log_std
    _split = ActionDistribution._split


class _CompiledPolicy:
    """The model, with a compiled `forward` and `evaluate`.

    Args:
        model: The model.
        network: Its bodies and heads.
        minibatch: Minibatch whose outputs are known.
        known: The outputs ``[n, P]`` and values ``[n]`` for its observations; and log standard
            deviations in place of the model's, if any.
    """

    def __init__(
        self,
        model: ActorCritic,
        network: _Network,
        minibatch: Minibatch,
        known: tuple[Tensor, ...],
    ) -> None:
        self._model, self._network = model, network
        self._minibatch, self._known = minibatch, known[:2]
        if len(known) == 3:
            self.distribution = _Distribution(model.distribution, known[2])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, observation: Mapping[str, Tensor], *_: Tensor | None) -> tuple[Tensor, ...]:
        if any(leaf.requires_grad or not leaf.numel() for leaf in observation.values()):
            return cast(tuple[Tensor, ...], self._model(observation))
        if observation is self._minibatch.observation:
            # Copies, as a loss may change outputs in place, but leaves must not change.
            return tuple(output.clone() for output in self._known)
        leading, leaves = self._model._leaves(observation)
        outputs, values = _Outputs.apply(  # type: ignore[no-untyped-call]
            self._network, leaves, self._network.anchor
        )
        return outputs.reshape(*leading, outputs.shape[1]), values.reshape(leading)

    evaluate = ActorCritic.evaluate


class _Network:
    """Bodies and heads of a model, compiled.

    Attributes:
        model: The model.
        has_value: Whether values of a separate body are computed; they are 0 otherwise.
        anchor: ``[0]``: stands for the parameters in autograd, which takes less time for one tensor
            than for all.

    Args:
        model: The model.
        total: ``[P]``: the vector of which the gradients of parameters are views.
        has_value: See the attribute.
    """

    def __init__(self, model: ActorCritic, total: Tensor, *, has_value: bool) -> None:
        self.model, self.has_value = model, has_value
        self.anchor = torch.empty(0, requires_grad=True)
        self._total, self._gradient = total, torch.zeros_like(total)
        self._program = MLPProgram(model, self._part_of, kernel.OUTPUTS)
        self._num_towers = 1 if model.critic_body is None else 2

    def outputs(
        self, inputs: Tensor, options: Tensor | None, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs ``[n, P]`` of the policy's head, and those ``[n]`` of the value's.

        Args:
            inputs: See `encoded`.
            options: See `encoded`.
            index: ``[n]``: rows to compute.
        """
        outputs = torch.empty(len(index), self.model.actor_head.out_features)
        values = torch.zeros(len(index))
        self._run(kernel.OUTPUTS, inputs, options, index, outputs, values, self.has_value)
        return outputs, values

    def add_gradient(
        self,
        inputs: Tensor,
        options: Tensor | None,
        index: Tensor,
        by_outputs: Tensor | None,
        by_values: Tensor | None,
    ) -> None:
        """Add the gradient by the parameters to ``total``, from that by the outputs.

        The hidden layers of the rows are computed again, which takes less time than writing them to
        memory and reading them.

        Args:
            inputs: See `encoded`.
            options: See `encoded`.
            index: ``[n]``: rows to compute.
            by_outputs: ``[n, P]``; None if the loss does not depend on these outputs.
            by_values: ``[n]``; None if the loss does not depend on values; a separate value body is
                not computed then.
        """
        has_value = by_values is not None
        if by_outputs is None:
            by_outputs = torch.zeros(len(index), self.model.actor_head.out_features)
        if by_values is None:
            by_values = torch.zeros(len(index))
            self._gradient.zero_()
        by_outputs, by_values = by_outputs.contiguous(), by_values.contiguous()
        self._run(kernel.GRADIENTS, inputs, options, index, by_outputs, by_values, has_value)
        self._total += self._gradient

    def _run(
        self,
        kind: int,
        inputs: Tensor,
        options: Tensor | None,
        index: Tensor,
        outputs: Tensor,
        values: Tensor,
        has_value: bool,
    ) -> None:
        """Compute all towers, or only the policy's, which is the first."""
        self._program.read(inputs, options)
        self._program.write(
            kind=kind,
            outputs=outputs.data_ptr(),
            values=values.data_ptr(),
            num_towers=self._num_towers if has_value else 1,
        )
        self._program.run(index)

    def _part_of(self, parameter: Tensor) -> Tensor:
        """Return the memory of a parameter's gradient, a part of the whole vector."""
        if not parameter.requires_grad:
            return torch.zeros_like(parameter)
        place = gradient_of(parameter).storage_offset()
        return self._gradient.as_strided(parameter.shape, parameter.stride(), place)


class _Outputs(torch.autograd.Function):
    """The outputs of a `_Network` for other observations than the minibatch's."""

    @staticmethod
    def forward(
        ctx: Any, network: _Network, leaves: list[Tensor], anchor: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs, options = encoded(network.model, leaves)
        index = torch.arange(len(inputs))
        ctx.network, ctx.rows = network, (inputs, options, index)
        ctx.set_materialize_grads(False)
        return network.outputs(inputs, options, index)

    @staticmethod
    def backward(ctx: Any, *by_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.network.add_gradient(*ctx.rows, *by_outputs)
        return None, None, torch.empty(0)
