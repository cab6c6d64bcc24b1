"""One call that computes the loss of a minibatch and its gradient, for MLP policies on the CPU.

Rows are processed `TILE` at a time, so that their intermediate results stay in the cache. In a
tile each feature's numbers are contiguous, ``buffer[feature, row] float32``: rows are the lanes of
registers, forward and backward, as in `fastrl.models.inference.mlp_kernel`. Only the gradient of
weights, which is a sum over rows, reads the inputs of a layer row by row.

The records below, which `mlp_gradients` fills, describe the task; most fields are addresses.
For a loss that is not compiled there are two calls: one computes the outputs, the other one the
gradient of the weights from the gradient of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import float32
from numba.np.numpy_support import carray

from fastrl.jit import cached_kernel
from fastrl.learning import objective_kernels
from fastrl.learning.objective_kernels import (
    METRICS,
    NUM_SETTINGS,
    categorical_terms,
    finish,
    gaussian_terms,
    moments,
    value_terms,
)
from fastrl.models.inference import lanes, layers
from fastrl.models.inference.lanes import (
    LANE_BYTES,
    LANES,
    acquire_int64,
    add,
    add_product,
    choose,
    exchange_int64,
    fill,
    give_way,
    jitted,
    load,
    mul,
    pointer,
    read_float32,
    read_int64,
    release_int64,
    store,
    sub,
    total,
    transpose,
    write_float32,
    write_int64,
)
from fastrl.models.inference.layers import (
    IDENTITY,
    RELU,
    TANH,
    activate,
    add_options,
    multiply,
)

Record = Any
"""A record of one of the types below, in jitted code."""
Records = Any
"""An array of such records, in jitted code."""

TILE = 64
"""Rows that are computed together."""
_TILE_BYTES = 4 * TILE

CATEGORICAL, GAUSSIAN, OUTPUTS, GRADIENTS = range(4)
"""Tasks: the known loss and its gradient, for either kind of action; the outputs of the heads; or
the gradient of the weights from the gradient by the outputs."""
INVALID = float(np.finfo(np.float32).min)
"""Logit of an invalid action. The exponential of its difference from any valid logit is exactly 0,
and their product is 0, unlike for -inf. Logits of the network are far above it."""


def _record(*fields: str) -> np.dtype[Any]:
    return np.dtype([(field, np.int64) for field in fields])


PROGRAM = _record(
    "towers",  # records TOWER: the policy's first, the value's last
    "num_towers",
    "inputs",  # [N, num_inputs] float32
    "num_inputs",
    "options",  # [N, num_choices] int64: columns of the first layers' weights
    "num_choices",
    "kind",  # task
    "width",  # outputs of the policy's head: logits, or numbers of an action
    "action",  # [N] int64, or [N, width] float32
    "valid",  # [N, width] bool, or 0 if all actions are valid
    "log_std",  # [width] float32
    "log_std_gradient",  # [width] float32
    "num_rows",  # N
    "columns",  # [N, 4] float32; see `objective_kernels.COLUMNS`
    "settings",  # [5] float64
    "metrics",  # [6] float64
    "outputs",  # [rows, width] float32: of the policy's head, or the gradient by them
    "values",  # [rows] float32: of the value's head, or the gradient by them
    "mailbox",  # [NUM_LETTERS] int64, or 0 if one thread computes everything
)
"""The task for all minibatches of one batch of N rows.

`OUTPUTS` and `GRADIENTS` use no actions, columns, settings or metrics; other tasks no outputs or
values.
"""

NUM_LETTERS = 24
"""Size of a mailbox; different threads write to different cache lines."""
_INDEX, _ROWS = 8, 16
_CLAIMED, _DONE = 64, 128
STOP = -1

TOWER = _record(
    "layers",  # records LAYER, heads last
    "num_layers",
    "rows",  # [TILE, padded inputs] float32: the inputs
    "features",  # [padded inputs, TILE] float32: the same
    "policy",  # number of the LAYER of the policy's head, or -1
    "value",  # number of the LAYER of the value's head, or -1
)
"""A body and its heads."""

LAYER = _record(
    *layers.LAYER,
    "weight_gradient",
    "bias_gradient",
    "source_rows",  # [TILE, padded inputs] float32: the same
    "source_gradient",  # [padded inputs, TILE] float32, or 0 if it is not needed
    "is_last_reader",  # of the source: writes its gradient first
    "target_rows",  # [TILE, padded outputs] float32: the same, or 0 for heads
    "gradient",  # [padded outputs, TILE] float32: by the target
    "sums",  # [outputs, padded inputs] float32: gradient of the weights
    "others",  # [num_inputs] int64: columns of the inputs among all weights, if there are options
)
"""A linear layer and its activation. Numbers are padded to multiples of `LANES`, with zeros.

Source and target are ``[padded inputs, TILE]`` and ``[padded outputs, TILE]``. The stride of all
weights and of their gradient is ``option_row``. With wide choices ``weight`` is a copy of those of
the inputs.
"""


@jitted
def padded(number: int) -> int:
    """Return the next multiple of `LANES`."""
    return (number + LANES - 1) // LANES * LANES


@jitted
def _zero(address: int, count: int) -> None:
    """Write zeros; ``count`` is a multiple of `LANES`."""
    for i in range(0, 4 * count, LANE_BYTES):
        store(address + i, fill(0.0))


@jitted
def _gather(program: Record, tower: Record, index: int, count: int) -> None:
    """Copy the inputs of a tile's rows."""
    width, row_bytes = program.num_inputs, 4 * padded(program.num_inputs)
    for row in range(TILE):
        target = tower.rows + row * row_bytes
        if row < count:
            source = program.inputs + read_int64(index + 8 * row) * 4 * width
            for i in range(width):
                write_float32(target + 4 * i, read_float32(source + 4 * i))
        else:
            for i in range(width):
                write_float32(target + 4 * i, float32(0.0))
    transpose(tower.rows, row_bytes, tower.features, _TILE_BYTES, TILE, padded(width))


@jitted
def _add_option_gradients(program: Record, layer: Record, index: int, count: int) -> None:
    for row in range(count):
        options = program.options + read_int64(index + 8 * row) * 8 * program.num_choices
        for k in range(program.num_choices):
            target = layer.weight_gradient + 4 * read_int64(options + 8 * k)
            gradient = layer.gradient + 4 * row
            for output in range(layer.num_outputs):
                address = target + output * layer.option_row
                number = read_float32(gradient + output * _TILE_BYTES)
                write_float32(address, read_float32(address) + number)


@jitted
def _forward(program: Record, layer: Record, index: int, count: int) -> None:
    registers = padded(count) // LANES
    multiply(layer, _TILE_BYTES, registers)
    if layer.options:
        for row in range(count):
            chosen = program.options + read_int64(index + 8 * row) * 8 * program.num_choices
            add_options(layer, _TILE_BYTES, row, chosen, program.num_choices)
    activate(layer, _TILE_BYTES, registers)
    if layer.target_rows:
        width = padded(layer.num_outputs)
        transpose(layer.target, _TILE_BYTES, layer.target_rows, 4 * width, width, registers * LANES)


@jitted
def _times_slope(layer: Record, registers: int) -> None:
    """Turn the gradient by the target into that by the sums."""
    for output in range(layer.num_outputs):
        for register in range(registers):
            offset = output * _TILE_BYTES + register * LANE_BYTES
            y, gradient = load(layer.target + offset), load(layer.gradient + offset)
            if layer.activation == TANH:
                gradient = mul(gradient, sub(fill(1.0), mul(y, y)))
            elif layer.activation == RELU:
                gradient = choose(y, fill(0.0), fill(0.0), gradient)
            store(layer.gradient + offset, gradient)


@jitted
def _backward(program: Record, layer: Record, index: int, count: int) -> None:
    registers = padded(count) // LANES
    if layer.activation != IDENTITY:
        _times_slope(layer, registers)
    width = padded(layer.num_inputs)
    add_product(
        layer.gradient,
        _TILE_BYTES,
        4,
        layer.source_rows,
        4 * width,
        layer.sums,
        4 * width,
        count,
        layer.num_outputs,
        width // LANES,
        0,
    )
    for output in range(layer.num_outputs):
        sums = fill(0.0)
        for register in range(registers):
            sums = add(sums, load(layer.gradient + output * _TILE_BYTES + register * LANE_BYTES))
        address = layer.bias_gradient + 4 * output
        write_float32(address, read_float32(address) + total(sums))
    if layer.options:
        _add_option_gradients(program, layer, index, count)
    if layer.source_gradient:
        if layer.is_last_reader:
            _zero(layer.source_gradient, width * TILE)
        add_product(
            layer.weight,
            4,
            4 * layer.num_inputs,
            layer.gradient,
            _TILE_BYTES,
            layer.source_gradient,
            _TILE_BYTES,
            layer.num_outputs,
            layer.num_inputs,
            registers,
            0,
        )


@jitted
def _policy_loss(
    program: Record, layer: Record, index: int, count: int, mean: float, scale: float, rows: int
) -> None:
    """Add a tile's terms of the policy's loss to the metrics; write the gradient of its head."""
    width, kind = program.width, program.kind
    outputs = carray(pointer(layer.target), (width, TILE), np.float32)[:, :count].T
    gradient = carray(pointer(layer.gradient), (width, TILE), np.float32)[:, :count].T
    chosen = carray(pointer(index), count, np.int64)
    columns = carray(pointer(program.columns), (program.num_rows, 4), np.float32)
    settings = carray(pointer(program.settings), NUM_SETTINGS, np.float64)
    metrics = carray(pointer(program.metrics), len(METRICS), np.float64)
    if program.valid:
        valid = carray(pointer(program.valid), (program.num_rows, width), np.bool_)
        for row in range(count):
            for option in range(width):
                if not valid[chosen[row], option]:
                    outputs[row, option] = INVALID
    if kind == CATEGORICAL:
        action = carray(pointer(program.action), program.num_rows, np.int64)
        categorical_terms(
            outputs, action, chosen, columns, settings, mean, scale, rows, gradient, metrics
        )
    else:
        numbers = carray(pointer(program.action), (program.num_rows, width), np.float32)
        log_std = carray(pointer(program.log_std), width, np.float32)
        by_log_std = carray(pointer(program.log_std_gradient), width, np.float32)
        gaussian_terms(
            outputs,
            log_std,
            numbers,
            chosen,
            columns,
            settings,
            mean,
            scale,
            rows,
            gradient,
            by_log_std,
            metrics,
        )


@jitted
def _value_loss(program: Record, layer: Record, index: int, count: int, rows: int) -> None:
    """Add a tile's terms of the value's loss to the metrics; write the gradient of its head."""
    value_terms(
        carray(pointer(layer.target), TILE, np.float32)[:count],
        carray(pointer(index), count, np.int64),
        carray(pointer(program.columns), (program.num_rows, 4), np.float32),
        carray(pointer(program.settings), NUM_SETTINGS, np.float64),
        rows,
        carray(pointer(layer.gradient), TILE, np.float32)[:count],
        carray(pointer(program.metrics), len(METRICS), np.float64),
    )


@jitted
def _copy_head(program: Record, layer: Record, memory: int, first: int, count: int) -> None:
    """Copy outputs of a head for a tile to memory, or the gradient by them from there.

    Args:
        program: Its kind decides between both.
        layer: The head.
        memory: Address of ``[rows, outputs] float32``.
        first: Row at which the tile begins.
        count: Rows of the tile.
    """
    width = layer.num_outputs
    for row in range(count):
        start = memory + 4 * (first + row) * width
        for output in range(width):
            offset = output * _TILE_BYTES + 4 * row
            if program.kind == OUTPUTS:
                write_float32(start + 4 * output, read_float32(layer.target + offset))
            else:
                write_float32(layer.gradient + offset, read_float32(start + 4 * output))


@jitted
def _head(
    program: Record,
    layer: Record,
    is_policy: bool,
    index: int,
    first: int,
    count: int,
    mean: float,
    scale: float,
    rows: int,
) -> None:
    """Compute a tile's loss and its gradient by a head's outputs, or copy one of them."""
    if program.kind >= OUTPUTS:
        memory = program.outputs if is_policy else program.values
        _copy_head(program, layer, memory, first, count)
    elif is_policy:
        _policy_loss(program, layer, index, count, mean, scale, rows)
    else:
        _value_loss(program, layer, index, count, rows)
    for output in range(layer.num_outputs):
        for row in range(count, padded(count)):
            write_float32(layer.gradient + output * _TILE_BYTES + 4 * row, float32(0.0))


@jitted
def _begin(program: Record, layer: Record) -> None:
    """Set gradients that are sums over rows to zero, and copy the weights of inputs."""
    inputs, row = layer.num_inputs, layer.option_row
    if program.kind != OUTPUTS:
        _zero(layer.sums, layer.num_outputs * padded(inputs))
        for output in range(layer.num_outputs):
            write_float32(layer.bias_gradient + 4 * output, float32(0.0))
        if layer.options:
            for address in range(0, layer.num_outputs * row, 4):
                write_float32(layer.weight_gradient + address, float32(0.0))
    if layer.options:
        for output in range(layer.num_outputs):
            for i in range(inputs):
                column = 4 * read_int64(layer.others + 8 * i)
                number = read_float32(layer.options + output * row + column)
                write_float32(layer.weight + 4 * (output * inputs + i), number)


@jitted
def _end(layer: Record) -> None:
    """Copy the gradient of weights from the sums."""
    inputs = layer.num_inputs
    for output in range(layer.num_outputs):
        source = layer.sums + 4 * output * padded(inputs)
        target = layer.weight_gradient + output * layer.option_row
        for i in range(inputs):
            column = read_int64(layer.others + 8 * i) if layer.options else i
            write_float32(target + 4 * column, read_float32(source + 4 * i))


@jitted
def _pass(program: Record, tower: Record, index: int, rows: int) -> None:
    """Compute a tower's part of the task for the rows at ``index``."""
    layers = carray(pointer(tower.layers), tower.num_layers, LAYER)
    mean, scale = 0.0, 1.0
    if program.kind < OUTPUTS and tower.policy >= 0:
        columns = carray(pointer(program.columns), (program.num_rows, 4), np.float32)
        settings = carray(pointer(program.settings), NUM_SETTINGS, np.float64)
        mean, scale = moments(carray(pointer(index), rows, np.int64), columns, settings)
    for i in range(tower.num_layers):
        _begin(program, layers[i])
    for first in range(0, rows, TILE):
        count, chosen = min(TILE, rows - first), index + 8 * first
        _gather(program, tower, chosen, count)
        for i in range(tower.num_layers):
            _forward(program, layers[i], chosen, count)
        for i in range(tower.num_layers - 1, -1, -1):
            if i == tower.policy or i == tower.value:
                is_policy = i == tower.policy
                _head(program, layers[i], is_policy, chosen, first, count, mean, scale, rows)
            if program.kind != OUTPUTS:
                _backward(program, layers[i], chosen, count)
    if program.kind != OUTPUTS:
        for i in range(tower.num_layers):
            _end(layers[i])


@jitted
def _pass_in_two_threads(program: Record, towers: Records, index: int, rows: int) -> None:
    """Compute the policy's part here, and the value's part in the other thread if it is free.

    The first thread that reaches the value's part computes it, so this thread waits only if the
    other one has begun.
    """
    mailbox = program.mailbox
    number = read_int64(mailbox) + 1
    write_int64(mailbox + _INDEX, index)
    write_int64(mailbox + _ROWS, rows)
    release_int64(mailbox, number)
    _pass(program, towers[0], index, rows)
    if exchange_int64(mailbox + _CLAIMED, number - 1, number) == number - 1:
        _pass(program, towers[1], index, rows)
        return
    while acquire_int64(mailbox + _DONE) != number:
        give_way()


@jitted
def _serve(program: Record, towers: Records) -> None:
    """Compute the value's part of minibatches until `STOP` is in the mailbox."""
    mailbox, seen = program.mailbox, 0
    while True:
        number = acquire_int64(mailbox)
        if number == STOP:
            return
        if number == seen:
            give_way()
            continue
        seen = number
        if exchange_int64(mailbox + _CLAIMED, number - 1, number) == number - 1:
            _pass(program, towers[1], read_int64(mailbox + _INDEX), read_int64(mailbox + _ROWS))
            release_int64(mailbox + _DONE, number)


_SOURCES = (__file__, objective_kernels.__file__, layers.__file__, lanes.__file__)


@cached_kernel([Path(source) for source in _SOURCES], nogil=True)
def run(digest: int) -> Callable[[int, int, int], bool]:
    """Return the kernel."""

    def run(program_address: int, index: int, rows: int) -> bool:
        """Run a `PROGRAM` on a minibatch; or serve another thread.

        Return False if a row is outside of the batch.

        Args:
            program_address: Address of a `PROGRAM` record.
            index: Address of ``[rows] int64``: rows of the batch.
            rows: Size of the minibatch; 0 to compute parts of another thread's minibatches
                until it writes `STOP` to the mailbox.
        """
        _ = digest
        program = carray(pointer(program_address), 1, PROGRAM)[0]
        towers = carray(pointer(program.towers), program.num_towers, TOWER)
        if rows == 0:
            _serve(program, towers)
            return True
        for row in range(rows):
            if not 0 <= read_int64(index + 8 * row) < program.num_rows:
                return False
        has_loss = program.kind == CATEGORICAL or program.kind == GAUSSIAN
        metrics = carray(pointer(program.metrics), len(METRICS), np.float64)
        settings = carray(pointer(program.settings), NUM_SETTINGS, np.float64)
        if has_loss:
            metrics[:] = 0.0
        if program.kind == GAUSSIAN:
            carray(pointer(program.log_std_gradient), program.width, np.float32)[:] = 0.0
        if program.mailbox:
            _pass_in_two_threads(program, towers, index, rows)
        else:
            for i in range(program.num_towers):
                _pass(program, towers[i], index, rows)
        if has_loss:
            finish(metrics, rows, settings)
        return True

    return run
