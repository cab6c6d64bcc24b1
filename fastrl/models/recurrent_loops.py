"""Sequences of GRU and LSTM by the compiled loops, differentiable by autograd, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastrl.models import recurrent_kernels as kernels
from fastrl.models.inference.lanes import LANES


def sequence(
    kind: int,
    features: Tensor,
    state: Tensor,
    keep: Tensor | None,
    weights: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the outputs ``[L, b, H]`` and the state after all steps, ``[b, kind · H] float32``.

    Args:
        kind: `kernels.GRU` or `kernels.LSTM`.
        features: ``[L, b, F]``.
        state: ``[b, kind · H]``: output, and for LSTM the cell.
        keep: ``[L, b] bool``: False where the state is 0 before a step; None for True everywhere.
        weights: Those of PyTorch's cells: of inputs and outputs, and the biases of both.
    """
    size = weights[1].shape[1]
    missing = -size % LANES
    if missing:
        # Units with weights of 0 stay at 0.
        gates = kernels.GATES[kind]
        by_gate = (tensor.unflatten(0, (gates, size)) for tensor in weights)
        of_inputs, of_outputs, *biases = by_gate
        weights = [
            F.pad(of_inputs, (0, 0, 0, missing)).flatten(0, 1),
            F.pad(of_outputs, (0, missing, 0, missing)).flatten(0, 1),
            *(F.pad(bias, (0, missing)).flatten(0, 1) for bias in biases),
        ]
        state = F.pad(state.unflatten(1, (kind, size)), (0, missing)).flatten(1)
    inputs = F.linear(features, weights[0], weights[2]).float()
    recurrence: Any = _Recurrence.apply
    outputs, after = recurrence(kind, inputs, state, keep, weights[1], weights[3])
    if missing:
        outputs, after = outputs[..., :size], after.unflatten(1, (kind, -1))[..., :size].flatten(1)
    return outputs, after


class Loop:
    """The loops of one layer over L steps of b sequences, and their memory.

    Attributes:
        outputs: ``[L · b, H]``, of the last `forward`.
        states: ``[L · b, kind · H]``: before each step of the last `forward`.
        after: ``[b, kind · H]``: after all steps.
        by_inputs: ``[L · b, gates · H]``: gradient by the inputs, of the last `backward`.
        by_products: ``[L · b, gates · H]``: that by the products of weights and states.
        by_state: ``[b, kind · H]``: that by the first state.

    Args:
        kind: `kernels.GRU` or `kernels.LSTM`.
        length: L.
        rows: b.
        size: H, a multiple of `LANES`.
    """

    def __init__(self, kind: int, length: int, rows: int, size: int) -> None:
        self._sizes = kind, length, rows, size
        steps, slack, width = length * rows, kernels.BLOCK, kernels.GATES[kind] * size
        self._states = torch.empty(steps + rows + slack, kind * size)
        self.states, self.after = self._states[:steps], self._states[steps : steps + rows]
        self.outputs = torch.empty(steps, size)
        self._products = torch.empty(rows + slack, width)
        self._saved = torch.empty(steps, kernels.SAVED[kind] * size)
        self._keep = torch.empty(length, rows)
        self._by_state = torch.empty(rows + slack, kind * size)
        self._by_products = torch.empty(steps + slack, width)
        self.by_state, self.by_products = self._by_state[:rows], self._by_products[:steps]
        self.by_inputs = torch.empty(steps, width) if kind == kernels.GRU else self.by_products

    def forward(
        self, inputs: Tensor, state: Tensor, keep: Tensor | None, weights: Tensor, bias: Tensor
    ) -> None:
        """Compute all steps.

        Args:
            inputs: ``[L · b, gates · H]``: products of features and weights, with the bias.
            state: ``[b, kind · H]``.
            keep: ``[L, b] bool``; None for True everywhere.
            weights: ``[gates · H, H]``.
            bias: ``[gates · H]``.
        """
        if keep is None:
            self._keep.fill_(1)
        else:
            self._keep.copy_(keep)
        self.states[: len(state)] = state
        packed = weights.view(-1, LANES, weights.shape[1]).transpose(1, 2).contiguous()
        tensors = (self._keep, packed, bias.contiguous(), inputs.contiguous(), self._products)
        self._run(kernels.forward, *tensors, self._states, self.outputs, self._saved)

    def backward(self, by_outputs: Tensor, by_after: Tensor | None, weights: Tensor) -> None:
        """Compute the gradients of the last `forward`.

        Args:
            by_outputs: ``[L · b, H]``.
            by_after: ``[b, kind · H]``; None for zeros.
            weights: As in `forward`.
        """
        if by_after is None:
            self.by_state.zero_()
        else:
            self.by_state.copy_(by_after)
        packed = weights.view(len(weights), -1, LANES).transpose(0, 1).contiguous()
        tensors = (self._keep, packed, self._states, self._saved, by_outputs.contiguous())
        others = (self._by_state, self.by_inputs, self._by_products)
        self._run(kernels.backward, *tensors, *others)

    def _run(self, kernel: Callable[..., None], *tensors: Tensor) -> None:
        kernel(*self._sizes, *(tensor.data_ptr() for tensor in tensors))

    def weights_gradient(self, out: Tensor | None = None) -> Tensor:
        """Return the gradient by the weights, ``[gates · H, H]``."""
        size = self.outputs.shape[1]
        return torch.mm(self.by_products.t(), self.states[:, :size], out=out)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kind: int, inputs: Tensor, state: Tensor, keep: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        length, rows, width = inputs.shape
        ctx.loop = Loop(kind, length, rows, weights[0].shape[1])
        ctx.loop.forward(inputs.view(-1, width), state, keep, *weights)
        ctx.save_for_backward(weights[0])
        return ctx.loop.outputs.view(length, rows, -1), ctx.loop.after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_outputs: Tensor, by_after: Tensor) -> tuple[Tensor | None, ...]:
        (weights,), loop = ctx.saved_tensors, ctx.loop
        loop.backward(by_outputs, by_after, weights)
        by_inputs = loop.by_inputs.view(*by_outputs.shape[:2], -1)
        by_bias = loop.by_products.sum(0)
        return None, by_inputs, loop.by_state, None, loop.weights_gradient(), by_bias
