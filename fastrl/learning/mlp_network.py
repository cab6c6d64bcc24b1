"""Gradients of any loss of an MLP policy on the CPU, whose network is compiled.

The loss is written in torch and differentiated by autograd, to which the network is one operation:
`mlp_pass` computes its outputs, and from the gradient by them that of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastrl.learning import mlp_pass as kernel
from fastrl.learning.algorithm import Algorithm
from fastrl.learning.gradients import AutogradEngine
from fastrl.learning.mlp_program import MLPProgram, encoded, why_not_described
from fastrl.learning.optimizers import FlatParameters
from fastrl.models.actor_critic import ActorCritic
from fastrl.models.policy import PolicyModel


def why_not_network(model: PolicyModel) -> str | None:
    """Return why `MLPNetworkEngine` cannot be used; None if it can."""
    why = why_not_described(model)
    if why is None and cast(ActorCritic, model).has_memory:
        return "the policy has a memory"
    return why


class MLPNetworkEngine(AutogradEngine):
    """Computes what `AutogradEngine` computes, where `why_not_network` returns None.

    Args:
        algorithm: Its loss.
        model: Its parameters must be those of ``parameters``.
        parameters: Where gradients go.
    """

    def __init__(
        self, algorithm: Algorithm[Any], model: ActorCritic, parameters: FlatParameters
    ) -> None:
        super().__init__(algorithm, model, parameters, compiled=False, bf16=False)
        self._policy = cast(PolicyModel, _CompiledPolicy(model, algorithm.uses_value))


class _CompiledPolicy:
    """The model, with a compiled `forward` and `evaluate`.

    Args:
        model: The model.
        has_value: Whether values of a separate body are computed; they are 0 otherwise.
    """

    def __init__(self, model: ActorCritic, has_value: bool) -> None:
        self._model, self._network = model, _Network(model, has_value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, observation: Mapping[str, Tensor], *_: Tensor | None) -> tuple[Tensor, ...]:
        if any(leaf.requires_grad for leaf in observation.values()):
            return cast(tuple[Tensor, ...], self._model(observation))
        leading, leaves = self._model._leaves(observation)
        outputs, values = _Outputs.apply(  # type: ignore[no-untyped-call]
            self._network, observation, leaves, *self._network.parameters
        )
        return outputs.reshape(*leading, -1), values.reshape(leading)

    evaluate = ActorCritic.evaluate


class _Network:
    """Bodies and heads of a model, compiled.

    Attributes:
        model: The model.
        parameters: Those of bodies and heads.

    Args:
        model: The model.
        has_value: See `_CompiledPolicy`.
    """

    def __init__(self, model: ActorCritic, has_value: bool) -> None:
        self.model, self._has_value = model, has_value
        parts = (model.actor_body, model.critic_body, model.actor_head, model.critic_head)
        self.parameters: list[nn.Parameter] = [
            parameter for part in parts if part is not None for parameter in part.parameters()
        ]
        self._gradient = torch.zeros(sum(parameter.numel() for parameter in self.parameters))
        gradients: dict[Tensor, Tensor] = dict(
            zip(self.parameters, self._split(self._gradient), strict=True)
        )
        self._program = MLPProgram(model, gradients.__getitem__, kernel.OUTPUTS)
        self._rows = torch.empty(0, dtype=torch.int64)
        self._of_values: set[int] = set()
        if model.critic_body is not None:
            critic = (*model.critic_body.parameters(), *model.critic_head.parameters())
            self._of_values = {id(parameter) for parameter in critic}

    def outputs(self, inputs: Tensor, options: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the outputs ``[n, P]`` of the policy's head, and those ``[n]`` of the value's."""
        outputs = torch.empty(len(inputs), self.model.actor_head.out_features)
        values = torch.zeros(len(inputs))
        self._run(kernel.OUTPUTS, inputs, options, outputs, values, is_policys=not self._has_value)
        return outputs, values

    def gradients(
        self,
        inputs: Tensor,
        options: Tensor | None,
        by_outputs: Tensor | None,
        by_values: Tensor | None,
    ) -> list[Tensor | None]:
        """Return the gradients of the parameters, given those by the outputs.

        Args:
            inputs: See `encoded`.
            options: See `encoded`.
            by_outputs: ``[n, P]``; None if the loss does not depend on these outputs.
            by_values: ``[n]``; None if it does not depend on values, of whose own body nothing is
                computed then.
        """
        skipped = self._of_values if by_values is None else set()
        if by_outputs is None:
            by_outputs = torch.zeros(len(inputs), self.model.actor_head.out_features)
        if by_values is None:
            by_values = torch.zeros(len(inputs))
        by_outputs, by_values = by_outputs.contiguous(), by_values.contiguous()
        self._run(
            kernel.GRADIENTS, inputs, options, by_outputs, by_values, is_policys=bool(skipped)
        )
        found = zip(self.parameters, self._split(self._gradient.clone()), strict=True)
        return [None if id(parameter) in skipped else gradient for parameter, gradient in found]

    def _run(
        self,
        kind: int,
        inputs: Tensor,
        options: Tensor | None,
        outputs: Tensor,
        values: Tensor,
        *,
        is_policys: bool = False,
    ) -> None:
        """Compute all towers, or the first one, which is the policy's."""
        if len(self._rows) != len(inputs):
            self._rows = torch.arange(len(inputs))
        num_towers = 2 if self._of_values and not is_policys else 1
        self._program.read(inputs, options)
        self._program.write(
            kind=kind,
            outputs=outputs.data_ptr(),
            values=values.data_ptr(),
            num_towers=num_towers,
        )
        self._program.run(self._rows)

    def _split(self, flat: Tensor) -> list[Tensor]:
        """Return the parts of a vector that belong to each parameter, with their shapes."""
        parts = flat.split([parameter.numel() for parameter in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]


class _Outputs(torch.autograd.Function):
    """The outputs of a `_Network`.

    Only those of the rows are kept for the gradient: all that lies between them and the inputs is
    computed again, which takes less time than to write it to memory and to read it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        network: _Network,
        observation: Mapping[str, Tensor],
        leaves: list[Tensor],
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.network, ctx.observation = network, observation
        ctx.encoded = encoded(network.model, leaves)
        ctx.set_materialize_grads(False)
        return network.outputs(*ctx.encoded)

    @staticmethod
    def backward(ctx: Any, *by_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        network: _Network = ctx.network
        if not torch.is_grad_enabled():
            return None, None, None, *network.gradients(*ctx.encoded, *by_outputs)
        # The gradient is to be differentiated, too: with `create_graph`.
        parameters, values = network.model(ctx.observation)
        outputs = zip((parameters.flatten(0, -2), values.flatten()), by_outputs, strict=True)
        used = [(output, gradient) for output, gradient in outputs if gradient is not None]
        gradients = torch.autograd.grad(
            [output for output, _ in used],
            network.parameters,
            [gradient for _, gradient in used],
            create_graph=True,
            materialize_grads=True,
        )
        return None, None, None, *gradients
