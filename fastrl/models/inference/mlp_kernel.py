"""One call that computes an MLP policy for a batch: forward pass, sampling, log_prob and value.

Layers of GRU or LSTM may follow the others.

Rows are processed `LANES` at a time, one per lane of a register. Intermediate results are stored
feature by feature, ``buffer[feature, lane] float32``. Lanes do not depend on each other, and a
last block with fewer rows runs the same instructions, so the results of a row do not depend on the
batch.

The records below, which `mlp_engine` fills, describe the policy; most fields are addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import float32, int8, int64
from numba.np.numpy_support import carray

from fastrl.jit import cached_kernel
from fastrl.models.inference import lanes, layers
from fastrl.models.inference.lanes import (
    LANE_BYTES,
    LANES,
    add,
    add_product,
    choose,
    clamp,
    exp,
    fill,
    fma,
    jitted,
    load,
    log,
    mul,
    pointer,
    read_float32,
    read_int8,
    read_int64,
    sigmoid,
    softplus,
    splat,
    store,
    sub,
    tanh,
    transpose_block,
    write_float32,
    write_int8,
    write_int64,
)
from fastrl.models.inference.layers import activate, add_options, multiply

Record = Any
"""A record of one of the types below, in jitted code."""
Lanes = Any
"""One number for each of `LANES` rows, in jitted code."""


def _record(*fields: str) -> np.dtype[Any]:
    return np.dtype([(field, np.int64) for field in fields])


PROGRAM = _record(
    "inputs",  # buffer of the observed vectors, joined
    "num_inputs",
    "statistics",  # float32 (mean, scale) of each input; 0 if inputs are not normalised
    "num_leaves",
    "choices",  # records CHOICE
    "num_choices",
    "chosen",  # [LANES, num_wide] int64: options of the wide choices
    "num_wide",  # wide choices
    "layers",  # records LAYER
    "num_layers",
    "parts",  # records PART
    "num_parts",
    "noise",  # buffer of the noise
    "scratch",  # buffer as long as the largest categorical, and one more for its index
    "value",  # address of the value
    "state",  # buffer of the state
    "next_state",  # buffer of the next state
)
"""The program of an engine; the same for all its calls."""

CHOICE = _record("start", "size", "target", "row", "first")
"""An observed choice of ``size`` options, from ``start``.

``target`` is a buffer of its one-hot vector, and ``row`` is 0. If the choice is wide, it is the
place of an int64 in ``chosen``, whose rows have a stride of ``row`` bytes: the number of the option
among those of all wide choices, counted from ``first``.
"""

LAYER = _record(*layers.LAYER, "cell")
"""One layer; ``cell`` is the address of a `CELL`, or 0."""

CELL = _record(
    "size",  # units
    "weight",  # [gates · size, size] float32: of the previous output
    "output",  # place of the units' output in the state
    "next_output",
    "memory",  # place of the cells of LSTM in the state; 0 for GRU
    "next_memory",
)
"""The recurrent part of a layer of GRU or LSTM, whose other fields are those of the input.

The layer's target and bias have four blocks: for GRU reset gate, update gate, and the parts of the
new output from input and output; for LSTM input gate, forget gate, new cell and output gate.
"""

PART = _record("kind", "parameters", "noise", "size", "constants", "state_std", "choice")
"""One action part: a categorical of ``size``, or ``size`` numbers of another ``kind``.

``choice`` is the first column of a categorical in the mask.

``parameters`` and ``noise`` are buffers. ``constants`` are float32, unless it is a categorical: the
constant of the log-density, then (standard deviation, its inverse) of each continuous element. With
``state_std`` log standard deviations follow the means in ``parameters``, and after the
constant of the log-density come their bounds: (low, high, 0) for a clamp, or for a tanh (middle,
half of the distance, its inverse).
"""

CALL = _record(
    "rows", "noise", "log_prob", "value", "leaves", "parts", "state", "next_state", "mask"
)
"""The tensors of one call: `VIEW` records, several for leaves and parts. Leaves are the
observed vectors, then the choices. States have a width of 0 if there is no memory or
nothing to write; ``mask`` is 0 if all actions are valid."""

VIEW = _record("address", "row", "column", "width")
"""Rows of elements in a tensor; ``row`` and ``column`` are strides in bytes."""

CATEGORICAL, BERNOULLI, GAUSSIAN, SQUASHED = range(4)

_CLIP = 10.0
"""As in `RunningNormalizer`."""
_BELOW_ONE = 1 - 2**-24
_LOG_2 = 0.6931471805599453
_NEVER = -np.inf
"""Logit of an invalid option; its `lanes.exp` is 0."""


@jitted
def _in_blocks(view: Record, count: int) -> int:
    """Return the number of columns that are transposed in registers."""
    return view.width - view.width % LANES if count == LANES and view.column == 4 else 0


@jitted
def _gather(view: Record, first: int, count: int, buffer: int) -> None:
    """Copy rows of float32 into a buffer, one row per lane."""
    start, row_stride, column_stride = view.address + first * view.row, view.row, view.column
    done = _in_blocks(view, count)
    for column in range(0, done, LANES):
        transpose_block(start + column * 4, row_stride, buffer + column * LANE_BYTES, LANE_BYTES)
    for row in range(count):
        source, target = start + row * row_stride, buffer + row * 4
        for column in range(done, view.width):
            write_float32(
                target + column * LANE_BYTES, read_float32(source + column * column_stride)
            )


@jitted
def _choose(choice: Record, view: Record, first: int, count: int) -> int:
    """Write an observed choice, one row per lane; return the number of invalid choices."""
    if choice.row == 0:
        for i in range(choice.size):
            store(choice.target + i * LANE_BYTES, fill(0.0))
    outside = 0
    for row in range(count):
        option = read_int64(view.address + (first + row) * view.row) - choice.start
        if option < 0 or option >= choice.size:
            outside += 1
            option = 0
        if choice.row == 0:
            write_float32(choice.target + option * LANE_BYTES + row * 4, float32(1.0))
        else:
            write_int64(choice.target + row * choice.row, choice.first + option)
    return outside


@jitted
def _scatter(view: Record, column: int, first: int, count: int, buffer: int) -> None:
    """Copy one feature from a buffer to a column of float32."""
    target, stride = view.address + first * view.row + column * view.column, view.row
    for row in range(count):
        write_float32(target + row * stride, read_float32(buffer + row * 4))


@jitted
def _scatter_rows(view: Record, first: int, count: int, buffer: int) -> None:
    """Copy a buffer to rows of float32: the inverse of `_gather`."""
    target, done = view.address + first * view.row, _in_blocks(view, count)
    for column in range(0, done, LANES):
        transpose_block(buffer + column * LANE_BYTES, LANE_BYTES, target + column * 4, view.row)
    for column in range(done, view.width):
        _scatter(view, column, first, count, buffer + column * LANE_BYTES)


@jitted
def _scatter_int8(view: Record, column: int, first: int, count: int, buffer: int) -> None:
    target, stride = view.address + first * view.row + column * view.column, view.row
    for row in range(count):
        write_int8(target + row * stride, int8(read_float32(buffer + row * 4)))


@jitted
def _scatter_int64(view: Record, first: int, count: int, buffer: int) -> None:
    target, stride = view.address + first * view.row, view.row
    for row in range(count):
        write_int64(target + row * stride, int64(read_float32(buffer + row * 4)))


@jitted
def _invalidate(part: Record, mask: Record, first: int, count: int) -> None:
    """Write the logits of the invalid options of a categorical."""
    start = mask.address + first * mask.row + part.choice * mask.column
    for row in range(count):
        source, target = start + row * mask.row, part.parameters + row * 4
        for k in range(part.size):
            # Without a branch, which changing masks would mispredict.
            address, valid = target + k * LANE_BYTES, read_int8(source + k * mask.column)
            logit = read_float32(address)
            write_float32(address, logit if valid != 0 else float32(_NEVER))


@jitted
def _normalize(inputs: int, num_inputs: int, statistics: int) -> None:
    for i in range(num_inputs):
        address = inputs + i * LANE_BYTES
        mean = splat(read_float32(statistics + 8 * i))
        scale = splat(read_float32(statistics + 8 * i + 4))
        scaled = mul(sub(load(address), mean), scale)
        store(address, clamp(scaled, fill(-_CLIP), fill(_CLIP)))


@jitted
def _recur(layer: Record) -> None:
    """Compute a layer with a `CELL`."""
    cell = carray(pointer(layer.cell), 1, CELL)[0]
    size, row, width = cell.size, LANE_BYTES, cell.size * LANE_BYTES
    multiply(layer, row, 1)
    # Sums over both input and output; those of the new output of GRU are apart.
    joined = layer.num_outputs if cell.memory != 0 else 2 * size
    add_product(cell.weight, 4 * size, 4, cell.output, row, layer.target, row, size, joined, 1, 0)
    if cell.memory == 0:
        weight, target = cell.weight + 4 * joined * size, layer.target + 3 * width
        bias = layer.bias + 4 * 3 * size
        add_product(weight, 4 * size, 4, cell.output, row, target, row, size, size, 1, bias)
    for i in range(0, width, LANE_BYTES):
        a, b = layer.target + i, layer.target + width + i
        c, d = b + width, b + 2 * width
        if cell.memory == 0:
            new = tanh(fma(sigmoid(load(a)), load(d), load(c)))
            output = fma(sigmoid(load(b)), sub(load(cell.output + i), new), new)
        else:
            memory = mul(sigmoid(load(a)), tanh(load(c)))
            memory = fma(sigmoid(load(b)), load(cell.memory + i), memory)
            store(cell.next_memory + i, memory)
            output = mul(sigmoid(load(d)), tanh(memory))
        store(cell.next_output + i, output)


@jitted
def _forward(program: Record, layer: Record, count: int) -> None:
    """Compute a layer for a block of rows."""
    if layer.cell != 0:
        _recur(layer)
        return
    multiply(layer, LANE_BYTES, 1)
    if layer.options != 0:
        for row in range(count):
            chosen = program.chosen + row * 8 * program.num_wide
            add_options(layer, LANE_BYTES, row, chosen, program.num_wide)
    activate(layer, LANE_BYTES, 1)


@jitted
def _categorical(part: Record, cumulative: int) -> Lanes:
    """Write the sampled index after the cumulative weights; return its log-probability."""
    size, parameters = part.size, part.parameters
    largest = load(parameters)
    for k in range(1, size):
        logit = load(parameters + k * LANE_BYTES)
        largest = choose(logit, largest, largest, logit)
    total = fill(0.0)
    for k in range(size):
        total = add(total, exp(sub(load(parameters + k * LANE_BYTES), largest)))
        store(cumulative + k * LANE_BYTES, total)
    uniform = load(part.noise)
    threshold = mul(choose(uniform, fill(_BELOW_ONE), uniform, fill(_BELOW_ONE)), total)
    index, chosen = fill(0.0), load(parameters)
    for k in range(size - 1):
        below = load(cumulative + k * LANE_BYTES)
        index = choose(below, threshold, fill(k + 1.0), index)
        chosen = choose(below, threshold, load(parameters + (k + 1) * LANE_BYTES), chosen)
    store(cumulative + size * LANE_BYTES, index)
    return sub(sub(chosen, largest), log(total))


@jitted
def _bernoulli(logit: Lanes, noise: Lanes, action: int) -> Lanes:
    """Store 0 or 1 at ``action``; return its log-probability."""
    one = choose(sigmoid(logit), noise, fill(0.0), fill(1.0))
    store(action, one)
    return sub(mul(one, logit), softplus(logit))


@jitted
def _bounded_log_std(log_std: Lanes, bounds: int) -> Lanes:
    """Return log standard deviations as `ActionDistribution.bounded` does."""
    first, second = splat(read_float32(bounds)), splat(read_float32(bounds + 4))
    inverse = read_float32(bounds + 8)
    if inverse == 0.0:
        return clamp(log_std, first, second)
    return fma(second, tanh(mul(sub(log_std, first), splat(inverse))), first)


@jitted
def _gaussian(
    mean: Lanes, noise: Lanes, std: Lanes, inverse: Lanes, squashed: bool, action: int
) -> Lanes:
    """Store the sample at ``action``; return its log-density but for the constant."""
    u = fma(std, noise, mean)
    store(action, u)
    z = mul(sub(u, mean), inverse)
    log_prob = mul(mul(z, z), fill(-0.5))
    if squashed:
        slope = sub(sub(fill(_LOG_2), u), softplus(mul(u, fill(-2.0))))
        log_prob = fma(slope, fill(-2.0), log_prob)
    return log_prob


@jitted
def _act_part(part: Record, view: Record, first: int, count: int, scratch: int) -> Lanes:
    """Sample one part, write its actions, and return their log-probability."""
    if part.kind == CATEGORICAL:
        log_prob = _categorical(part, scratch)
        _scatter_int64(view, first, count, scratch + part.size * LANE_BYTES)
        return log_prob
    log_prob = splat(read_float32(part.constants))
    for i in range(part.size):
        parameter = load(part.parameters + i * LANE_BYTES)
        noise = load(part.noise + i * LANE_BYTES)
        if part.kind == BERNOULLI:
            log_prob = add(log_prob, _bernoulli(parameter, noise, scratch))
            _scatter_int8(view, i, first, count, scratch)
        else:
            if part.state_std != 0:
                unbounded = load(part.parameters + (part.size + i) * LANE_BYTES)
                log_std = _bounded_log_std(unbounded, part.constants + 4)
                std, inverse = exp(log_std), exp(sub(fill(0.0), log_std))
                log_prob = sub(log_prob, log_std)
            else:
                std = splat(read_float32(part.constants + 4 + i * 8))
                inverse = splat(read_float32(part.constants + 8 + i * 8))
            term = _gaussian(parameter, noise, std, inverse, part.kind == SQUASHED, scratch)
            log_prob = add(log_prob, term)
            _scatter(view, i, first, count, scratch)
    return log_prob


@jitted
def _act(program: Record, call: Record, first: int, count: int) -> Lanes:
    """Sample every part, write its actions, and return the log-probability of all."""
    parts = carray(pointer(program.parts), program.num_parts, PART)
    views = carray(pointer(call.parts), program.num_parts, VIEW)
    log_prob = fill(0.0)
    for i in range(program.num_parts):
        if call.mask != 0 and parts[i].kind == CATEGORICAL:
            _invalidate(parts[i], carray(pointer(call.mask), 1, VIEW)[0], first, count)
        term = _act_part(parts[i], views[i], first, count, program.scratch)
        log_prob = add(log_prob, term)
    return log_prob


@jitted
def _observe(program: Record, call: Record, first: int, count: int) -> int:
    """Fill the buffers of the inputs; return the number of invalid choices."""
    num_views, buffer, outside = program.num_leaves + program.num_choices, program.inputs, 0
    leaves = carray(pointer(call.leaves), num_views, VIEW)
    choices = carray(pointer(program.choices), program.num_choices, CHOICE)
    for leaf in range(program.num_leaves):
        _gather(leaves[leaf], first, count, buffer)
        buffer += leaves[leaf].width * LANE_BYTES
    for i in range(program.num_choices):
        outside += _choose(choices[i], leaves[program.num_leaves + i], first, count)
    if program.statistics != 0:
        _normalize(program.inputs, program.num_inputs, program.statistics)
    return outside


_SOURCES = (__file__, layers.__file__, lanes.__file__)


@cached_kernel([Path(source) for source in _SOURCES])
def run(digest: int) -> Callable[[int, int], int]:
    """Return the kernel."""

    def run(program_address: int, call_address: int) -> int:
        """Compute the policy for one batch, or only its value if the program has no action parts.

        Return the number of observed choices outside of their range; their first option is used.

        Args:
            program_address: Address of a `PROGRAM` record.
            call_address: Address of a `CALL` record that fits the program.
        """
        _ = digest
        program = carray(pointer(program_address), 1, PROGRAM)[0]
        call = carray(pointer(call_address), 1, CALL)[0]
        all_layers = carray(pointer(program.layers), program.num_layers, LAYER)
        noise_view = carray(pointer(call.noise), 1, VIEW)[0]
        log_prob_view = carray(pointer(call.log_prob), 1, VIEW)[0]
        value_view = carray(pointer(call.value), 1, VIEW)[0]
        state_view = carray(pointer(call.state), 1, VIEW)[0]
        next_view = carray(pointer(call.next_state), 1, VIEW)[0]
        outside = 0
        for first in range(0, call.rows, LANES):
            count = min(LANES, call.rows - first)
            outside += _observe(program, call, first, count)
            _gather(state_view, first, count, program.state)
            for i in range(program.num_layers):
                _forward(program, all_layers[i], count)
            _scatter_rows(next_view, first, count, program.next_state)
            _scatter(value_view, 0, first, count, program.value)
            if program.num_parts > 0:
                _gather(noise_view, first, count, program.noise)
                store(program.scratch, _act(program, call, first, count))
                _scatter(log_prob_view, 0, first, count, program.scratch)
        return outside

    return run
