"""The forward pass of a layer in vector registers, for acting and for learning.

`mlp_kernel` and `fastrl.learning.mlp_pass` store numbers feature by feature, ``buffer[feature, row]
float32``, so rows are the lanes of registers. Sums begin with the bias and follow the order of the
inputs, so a row gives the same bits in both, whatever the number of rows.
"""

from __future__ import annotations

from typing import Any

from fastrl.models.inference.lanes import (
    LANE_BYTES,
    add_product,
    choose,
    exp,
    fill,
    inlined,
    jitted,
    load,
    mul,
    read_float32,
    read_int64,
    sigmoid,
    store,
    sub,
    tanh,
    write_float32,
)

Layer = Any
"""A record with the fields `LAYER`, in jitted code."""
Lanes = Any
"""`LANES` float32 numbers, in jitted code."""

LAYER = (
    "weight",  # [outputs, inputs] float32, in the order of the source and without wide choices
    "bias",  # [outputs] float32
    "num_inputs",
    "num_outputs",
    "activation",
    "options",  # float32 weights of the options of wide choices, in a first layer
    "option_step",  # stride of the options
    "option_row",  # stride of the outputs
    "source",  # buffer of the inputs
    "target",  # buffer of the outputs
)
"""Fields of a linear layer and its activation: addresses, numbers, and strides in bytes."""

IDENTITY, TANH, RELU, ELU, SILU = range(5)


@inlined
def multiply(layer: Layer, row_bytes: int, registers: int) -> None:
    """Write the products of inputs and weights, plus the bias.

    Args:
        layer: The layer.
        row_bytes: Stride of the buffers' features, in bytes.
        registers: Number of registers for all rows.
    """
    add_product(
        layer.weight,
        4 * layer.num_inputs,
        4,
        layer.source,
        row_bytes,
        layer.target,
        row_bytes,
        layer.num_inputs,
        layer.num_outputs,
        registers,
        layer.bias,
    )


@inlined
def add_options(layer: Layer, row_bytes: int, row: int, chosen: int, num_choices: int) -> None:
    """Add the weights of a row's chosen options.

    Args:
        layer: The layer.
        row_bytes: See `multiply`.
        row: The row.
        chosen: Address of ``[num_choices] int64``: its options.
        num_choices: Number of wide choices.
    """
    for k in range(num_choices):
        weight = layer.options + read_int64(chosen + 8 * k) * layer.option_step
        target = layer.target + 4 * row
        for output in range(layer.num_outputs):
            address = target + output * row_bytes
            number = read_float32(weight + output * layer.option_row)
            write_float32(address, read_float32(address) + number)


@jitted
def _relu(x: Lanes) -> Lanes:
    return choose(x, fill(0.0), fill(0.0), x)


@jitted
def _elu(x: Lanes) -> Lanes:
    return choose(x, fill(0.0), sub(exp(x), fill(1.0)), x)


@jitted
def _silu(x: Lanes) -> Lanes:
    return mul(x, sigmoid(x))


@inlined
def _apply(function: Any, layer: Layer, row_bytes: int, registers: int) -> None:
    outputs, width = layer.num_outputs, registers * LANE_BYTES
    if width == row_bytes:
        outputs, width = 1, outputs * width
    for start in range(layer.target, layer.target + outputs * row_bytes, row_bytes):
        for address in range(start, start + width, LANE_BYTES):
            store(address, function(load(address)))


@inlined
def activate(layer: Layer, row_bytes: int, registers: int) -> None:
    """Apply the activation in place; see `multiply`."""
    if layer.activation == TANH:
        _apply(tanh, layer, row_bytes, registers)
    elif layer.activation == RELU:
        _apply(_relu, layer, row_bytes, registers)
    elif layer.activation == ELU:
        _apply(_elu, layer, row_bytes, registers)
    elif layer.activation == SILU:
        _apply(_silu, layer, row_bytes, registers)
