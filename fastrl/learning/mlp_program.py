"""The description of an MLP policy that `mlp_pass` computes, and the memory it computes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.learning import mlp_pass as kernel
from fastrl.learning.gradients import custom_forward
from fastrl.models.actor_critic import ActorCritic
from fastrl.models.networks import Body, OneHotEncoder, VectorEncoder, columns_by_kind
from fastrl.models.policy import PolicyModel

_ACTIVATIONS: Mapping[type[nn.Module], int] = {nn.Tanh: kernel.TANH, nn.ReLU: kernel.RELU}


def why_not_described(model: PolicyModel) -> str | None:
    """Return why the bodies and heads of a model cannot be described; None if they can.

    The model must compute what an `ActorCritic` computes, in float32 on the CPU, over vectors of
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
    """Return which inputs of the first layers belong to no wide choice, and whether some do.

    The first are ``[inputs] int64``, columns of the layers' weights.
    """
    vectors, narrow, wide = columns_by_kind(model.actor_body.encoders)
    return torch.cat([vectors, narrow]).sort().values, len(wide) > 0


@torch.no_grad()
def encoded(model: ActorCritic, leaves: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return what the first layers read of an observation.

    Args:
        model: Its normalisers and encoders, which have no parameters; see `why_not_described`.
        leaves: Of the observation, ``[n, *shape]`` each.

    Returns:
        ``[n, inputs] float32``, without those of wide choices; and ``[n, choices] int64``: which
        columns of the weights belong to the options that were chosen, or None without wide choices.
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
        model: Its parameters must stay where they are.
        gradient_of: Returns where the gradient of a parameter goes, a contiguous tensor.
        kind: What `mlp_pass` computes.

    Attributes:
        address: That of the `mlp_pass.PROGRAM`.
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
        self._record = np.zeros(1, kernel.PROGRAM)
        self.address = self._record.ctypes.data
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
            self._record[name] = content

    def read(self, inputs: Tensor, options: Tensor | None) -> None:
        """Set where the inputs of the rows are; see `encoded`."""
        self.write(
            inputs=inputs.data_ptr(),
            options=0 if options is None else options.data_ptr(),
            num_choices=0 if options is None else options.shape[1],
            num_rows=len(inputs),
        )

    def run(self, index: Tensor) -> bool:
        """Compute the rows ``[n] int64``; return False if one is outside the batch."""
        return kernel.run(self.address, index.data_ptr(), len(index))

    def _tower(
        self, body: Body, heads: Sequence[nn.Linear], policy: int = 0, value: int = 0
    ) -> NDArray[Any]:
        """Return the record of a body and its heads; which is whose head counts from the end."""
        inputs = kernel.padded(len(self._others))
        source = self._buffer(inputs, kernel.TILE), self._buffer(kernel.TILE, inputs), 0
        tower = np.zeros(1, kernel.TOWER)
        tower["features"], tower["rows"] = source[:2]
        modules: list[Any] = list(body.mlp)
        layers: list[tuple[nn.Linear, int]] = [
            (linear, _ACTIVATIONS[type(activation)])
            for linear, activation in zip(modules[::2], modules[1::2], strict=True)
        ]
        layers += [(head, kernel.IDENTITY) for head in heads]
        records = np.zeros(len(layers), kernel.LAYER)
        for number, (linear, activation) in enumerate(layers):
            outputs, record = kernel.padded(linear.out_features), records[number]
            is_hidden, has_options = number < len(modules) // 2, not number and self._has_options
            num_inputs = len(self._others) if not number else linear.in_features
            target, gradient = (self._buffer(outputs, kernel.TILE) for _ in range(2))
            rows = self._buffer(kernel.TILE, outputs) if is_hidden else 0
            found = {
                "weight": linear.weight.data_ptr(),
                "bias": linear.bias.data_ptr(),
                "weight_gradient": self._gradient_of(linear.weight).data_ptr(),
                "bias_gradient": self._gradient_of(linear.bias).data_ptr(),
                "num_inputs": num_inputs if has_options else linear.in_features,
                "num_outputs": linear.out_features,
                "activation": activation,
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
                found["num_options"] = linear.in_features - num_inputs
                found["others"] = self._others.data_ptr()
                found["narrow"] = self._buffer(outputs, kernel.padded(num_inputs))
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
