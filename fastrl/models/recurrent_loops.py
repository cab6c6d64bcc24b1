"""Compiled loops of GRU and LSTM over the steps of sequences, differentiable by autograd.

The forward loop is one compiled call, and so is the backward loop. The last axis of every tensor is
contiguous and a multiple of `LANES`; units are processed `LANES` at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastrl.jit import cached_kernel
from fastrl.models.inference import lanes
from fastrl.models.inference.lanes import (
    LANE_BYTES,
    LANES,
    add,
    add_product,
    fill,
    fma,
    jitted,
    load,
    mul,
    read_float32,
    sigmoid,
    store,
    sub,
    tanh,
)

Lanes = Any
"""`LANES` float32 numbers, in jitted code."""

GRU, LSTM = 1, 2
"""Kinds, and the vectors in a state: the output, and for LSTM the cell."""
GATES = {GRU: 3, LSTM: 4}
"""Blocks of the weights: reset, update, new; or input, forget, cell, output."""
SAVED = {GRU: 4, LSTM: 5}
"""Vectors that `forward` saves for `backward`: the gates, then for GRU the product that the reset
gate multiplies, and for LSTM the tanh of the new cell."""


@jitted
def _forget(state: int, row: int, rows: int, keep: int) -> None:
    """Set the states of rows whose ``keep`` is 0 to 0."""
    for i in range(rows):
        if read_float32(keep + i * 4) == 0.0:
            for unit in range(state + i * row, state + (i + 1) * row, LANE_BYTES):
                store(unit, fill(0.0))


@jitted
def _gru(width: int, x: int, s: int, before: int, after: int, output: int, saved: int) -> None:
    """Compute one row from the products of its input and of its state, ``x`` and ``s``."""
    for i in range(0, width, LANE_BYTES):
        reset = sigmoid(add(load(x + i), load(s + i)))
        update = sigmoid(add(load(x + width + i), load(s + width + i)))
        product = load(s + 2 * width + i)
        new = tanh(fma(reset, product, load(x + 2 * width + i)))
        h = fma(update, sub(load(before + i), new), new)
        store(after + i, h)
        store(output + i, h)
        store(saved + i, reset)
        store(saved + width + i, update)
        store(saved + 2 * width + i, new)
        store(saved + 3 * width + i, product)


@jitted
def _lstm(width: int, x: int, s: int, before: int, after: int, output: int, saved: int) -> None:
    """Compute one row; see `_gru`."""
    for i in range(0, width, LANE_BYTES):
        into = sigmoid(add(load(x + i), load(s + i)))
        forget = sigmoid(add(load(x + width + i), load(s + width + i)))
        new = tanh(add(load(x + 2 * width + i), load(s + 2 * width + i)))
        out = sigmoid(add(load(x + 3 * width + i), load(s + 3 * width + i)))
        cell = fma(forget, load(before + width + i), mul(into, new))
        bounded = tanh(cell)
        h = mul(out, bounded)
        store(after + i, h)
        store(after + width + i, cell)
        store(output + i, h)
        store(saved + i, into)
        store(saved + width + i, forget)
        store(saved + 2 * width + i, new)
        store(saved + 3 * width + i, out)
        store(saved + 4 * width + i, bounded)


@jitted
def _slope(gate: Lanes) -> Lanes:
    """Return the derivative of a sigmoid by its result."""
    return fma(sub(fill(0.0), gate), gate, gate)


@jitted
def _tanh_slope(result: Lanes) -> Lanes:
    return fma(sub(fill(0.0), result), result, fill(1.0))


@jitted
def _gru_back(width: int, before: int, saved: int, output: int, state: int, x: int, s: int) -> None:
    """Turn the gradient by one row's state and output into that by its products.

    ``state`` becomes the gradient by the previous state, without the part through the products.
    """
    for i in range(0, width, LANE_BYTES):
        reset, update = load(saved + i), load(saved + width + i)
        new, product = load(saved + 2 * width + i), load(saved + 3 * width + i)
        gradient = add(load(output + i), load(state + i))
        by_update = mul(mul(gradient, sub(load(before + i), new)), _slope(update))
        by_new = mul(sub(gradient, mul(gradient, update)), _tanh_slope(new))
        by_reset = mul(mul(by_new, product), _slope(reset))
        store(x + i, by_reset)
        store(x + width + i, by_update)
        store(x + 2 * width + i, by_new)
        store(s + i, by_reset)
        store(s + width + i, by_update)
        store(s + 2 * width + i, mul(by_new, reset))
        store(state + i, mul(gradient, update))


@jitted
def _lstm_back(width: int, before: int, saved: int, output: int, state: int, x: int) -> None:
    """Do the same for LSTM, whose two products are only added."""
    for i in range(0, width, LANE_BYTES):
        into, forget = load(saved + i), load(saved + width + i)
        new, out = load(saved + 2 * width + i), load(saved + 3 * width + i)
        bounded = load(saved + 4 * width + i)
        gradient = add(load(output + i), load(state + i))
        by_cell = mul(mul(gradient, out), _tanh_slope(bounded))
        by_cell = add(by_cell, load(state + width + i))
        store(x + i, mul(mul(by_cell, new), _slope(into)))
        store(x + width + i, mul(mul(by_cell, load(before + width + i)), _slope(forget)))
        store(x + 2 * width + i, mul(mul(by_cell, into), _tanh_slope(new)))
        store(x + 3 * width + i, mul(mul(gradient, bounded), _slope(out)))
        store(state + i, fill(0.0))
        store(state + width + i, mul(by_cell, forget))


_SOURCES = [Path(__file__), Path(lanes.__file__)]


@cached_kernel(_SOURCES, nogil=True)
def forward(digest: int) -> Callable[..., None]:
    """Return the kernel of the forward loop."""

    def forward(
        kind: int, length: int, rows: int, size: int, keep: int, weights: int, bias: int,
        inputs: int, products: int, states: int, outputs: int, saved: int,
    ) -> None:  # fmt: skip
        """Compute L steps of b sequences; all but the first four are addresses of float32.

        Args:
            kind: `GRU` or `LSTM`.
            length: L.
            rows: b.
            size: H.
            keep: ``[L, b]``: 0 where the state is reset before the step.
            weights: Weights of the state, ``[H, gates · H]``.
            bias: ``[gates · H]``.
            inputs: ``[L, b, gates · H]``: products of the inputs, bias included.
            products: Memory ``[b, gates · H]``.
            states: ``[L + 1, b, kind · H]``: before each step and after the last; the first is
                an input.
            outputs: Written, ``[L, b, H]``.
            saved: Written, ``[L, b, saved vectors · H]``.
        """
        _ = digest
        width = size * 4
        gates = 3 if kind == GRU else 4
        state_row, inputs_row = kind * width, gates * width
        saved_row = (gates + 1) * width
        for _ in range(length):
            _forget(states, state_row, rows, keep)
            for product in range(products, products + rows * inputs_row, inputs_row):
                for i in range(0, inputs_row, LANE_BYTES):
                    store(product + i, load(bias + i))
            add_product(
                states, state_row, 4, weights, inputs_row, products, inputs_row, size, rows,
                inputs_row // LANE_BYTES, 0,
            )  # fmt: skip
            after = states + rows * state_row
            for row in range(rows):
                x, s = inputs + row * inputs_row, products + row * inputs_row
                h, h_after = states + row * state_row, after + row * state_row
                if kind == GRU:
                    _gru(width, x, s, h, h_after, outputs, saved)
                else:
                    _lstm(width, x, s, h, h_after, outputs, saved)
                outputs += width
                saved += saved_row
            keep += rows * 4
            inputs += rows * inputs_row
            states = after

    return forward


@cached_kernel(_SOURCES, nogil=True)
def backward(digest: int) -> Callable[..., None]:
    """Return the kernel of the backward loop."""

    def backward(
        kind: int, length: int, rows: int, size: int, keep: int, weights: int, states: int,
        saved: int, by_outputs: int, by_state: int, by_inputs: int, by_products: int,
    ) -> None:  # fmt: skip
        """Compute the gradients of `forward` by the products of each step.

        Args:
            kind: As in `forward`.
            length: As in `forward`.
            rows: As in `forward`.
            size: As in `forward`.
            keep: As in `forward`.
            weights: Weights of the state, ``[gates · H, H]``.
            states: As `forward` wrote them.
            saved: As `forward` wrote them.
            by_outputs: Gradient by the outputs, ``[L, b, H]``.
            by_state: Gradient by the last state, ``[b, kind · H]``; overwritten with the gradient
                by the first one.
            by_inputs: Written for GRU: gradient by the inputs, ``[L, b, gates · H]``.
            by_products: Written: gradient by the products of the states, of the same shape; for
                LSTM also the gradient by the inputs.
        """
        _ = digest
        width = size * 4
        gates = 3 if kind == GRU else 4
        state_row, gates_row = kind * width, gates * width
        saved_row = (gates + 1) * width
        for step in range(length - 1, -1, -1):
            first = step * rows
            for row in range(first, first + rows):
                h, vectors = states + row * state_row, saved + row * saved_row
                out, state = by_outputs + row * width, by_state + (row - first) * state_row
                s = by_products + row * gates_row
                if kind == GRU:
                    _gru_back(width, h, vectors, out, state, by_inputs + row * gates_row, s)
                else:
                    _lstm_back(width, h, vectors, out, state, s)
            s = by_products + first * gates_row
            add_product(
                s, gates_row, 4, weights, width, by_state, state_row, gates * size, rows,
                width // LANE_BYTES, 0,
            )  # fmt: skip
            _forget(by_state, state_row, rows, keep + first * 4)

    return backward


def sequence(
    kind: int,
    features: Tensor,
    state: Tensor,
    keep: Tensor | None,
    weights: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the outputs ``[L, b, H]`` and the state after all steps, ``[b, kind · H] float32``.

    Args:
        kind: `GRU` or `LSTM`.
        features: ``[L, b, F]``.
        state: ``[b, kind · H]``: outputs, and for LSTM the cells.
        keep: ``[L, b] bool``: False where the state is 0 before a step; None for True everywhere.
        weights: Weights of PyTorch's cells: of inputs and outputs, and the biases of both.
    """
    size = weights[1].shape[1]
    missing = -size % LANES
    if missing:
        # Units with weights of 0 stay at 0.
        gates = GATES[kind]
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
        outputs: ``[L · b, H]``, outputs of the last `forward`.
        states: ``[L · b, kind · H]``: states before each step of the last `forward`.
        after: ``[b, kind · H]``: state after all steps.
        by_inputs: ``[L · b, gates · H]``: gradient by the inputs, of the last `backward`.
        by_products: ``[L · b, gates · H]``: gradient by the products of weights and states.
        by_state: ``[b, kind · H]``: gradient by the first state.

    Args:
        kind: `GRU` or `LSTM`.
        length: L.
        rows: b.
        size: H, a multiple of `LANES`.
    """

    def __init__(self, kind: int, length: int, rows: int, size: int) -> None:
        self._sizes = kind, length, rows, size
        steps, width = length * rows, GATES[kind] * size
        self._states = torch.empty(steps + rows, kind * size)
        self.states, self.after = self._states[:steps], self._states[steps:]
        self.outputs = torch.empty(steps, size)
        self._products = torch.empty(rows, width)
        self._saved = torch.empty(steps, SAVED[kind] * size)
        self._keep = torch.empty(length, rows)
        self.by_state = torch.empty(rows, kind * size)
        self.by_products = torch.empty(steps, width)
        self.by_inputs = torch.empty(steps, width) if kind == GRU else self.by_products

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
        by_unit = weights.t().contiguous()
        tensors = (self._keep, by_unit, bias.contiguous(), inputs.contiguous(), self._products)
        self._run(forward, *tensors, self._states, self.outputs, self._saved)

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
        tensors = (
            self._keep,
            weights.contiguous(),
            self._states,
            self._saved,
            by_outputs.contiguous(),
        )
        others = (self.by_state, self.by_inputs, self.by_products)
        self._run(backward, *tensors, *others)

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
