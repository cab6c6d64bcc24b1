"""Products of small matrices whose columns are lanes of registers, for numba.

A block of the result stays in registers while the sum runs, so that a product reads each number
from the cache nearest to the processor and needs no copy in another order. Matrices of 64 × 64
reach most of what one core can multiply; a call into a library costs as much as such a product.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastrl.models.inference import lanes
from fastrl.models.inference.lanes import LANE_BYTES, LANES, jitted, transpose_block

_FLOAT, _INT64 = ir.FloatType(), ir.IntType(64)
_FLOATS = ir.VectorType(_FLOAT, LANES)


def _address(builder: Any, start: Any, index: int, stride: Any) -> Any:
    return builder.add(start, builder.mul(stride, _INT64(index)))


def _block(rows: int, registers: int) -> Any:
    """Return a function for jitted code that adds a product to a block of the result.

    The arguments are those of `add_product`, without the numbers of rows and registers.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, left_row, left_step, right, right_step, result, result_row, terms = arguments
        starts = [_address(builder, left, row, left_row) for row in range(rows)]
        columns = [_INT64(number * LANE_BYTES) for number in range(registers)]
        targets = [
            builder.add(_address(builder, result, row, result_row), column)
            for row in range(rows)
            for column in columns
        ]
        sums = [
            cgutils.alloca_once_value(builder, lanes.emit_load(builder, target))  # type: ignore[no-untyped-call]
            for target in targets
        ]
        with cgutils.for_range(builder, terms) as loop:
            step = builder.mul(loop.index, left_step)
            source = builder.add(right, builder.mul(loop.index, right_step))
            factors = [lanes.emit_load(builder, builder.add(source, column)) for column in columns]
            for row, start in enumerate(starts):
                number = lanes.emit_broadcast(builder, builder.add(start, step))
                for factor, total in zip(factors, sums[row * registers :], strict=False):
                    added = lanes.emit_fma(builder, number, factor, builder.load(total))
                    builder.store(added, total)
        for target, total in zip(targets, sums, strict=True):
            lanes.emit_store(builder, target, builder.load(total))
        return context.get_dummy_value()

    @intrinsic
    def add_block(
        typing_context: Any,
        left: Any,
        left_row: Any,
        left_step: Any,
        right: Any,
        right_step: Any,
        result: Any,
        result_row: Any,
        terms: Any,
    ) -> Any:
        return types.none(*[types.int64] * 8), generate

    return add_block


# As many sums as registers hold beside their factors.
_six_by_two, _four_by_two, _two_by_two, _one_by_two = (_block(rows, 2) for rows in (6, 4, 2, 1))
_six_by_one, _four_by_one, _two_by_one, _one_by_one = (_block(rows, 1) for rows in (6, 4, 2, 1))


@jitted
def add_product(
    left: int,
    left_row: int,
    left_step: int,
    right: int,
    right_step: int,
    result: int,
    result_row: int,
    terms: int,
    rows: int,
    registers: int,
) -> None:
    """Add ``left · right`` to ``result``; all are addresses of float32, and strides are in bytes.

    Args:
        left: ``[rows, terms]``.
        left_row: Stride of its rows.
        left_step: Stride of its columns.
        right: ``[terms, registers · LANES]``, of which rows are contiguous.
        right_step: Stride of its rows.
        result: ``[rows, registers · LANES]``, of which rows are contiguous.
        result_row: Stride of its rows.
        terms: Length of the sums.
        rows: Rows of the result.
        registers: Columns of the result, in registers.
    """
    row = 0
    while row < rows:
        a, c, register = left + row * left_row, result + row * result_row, 0
        height = rows - row
        height = 6 if height >= 6 else 4 if height >= 4 else 2 if height >= 2 else 1
        while register < registers:
            b, d = right + register * LANE_BYTES, c + register * LANE_BYTES
            if registers - register >= 2:
                if height == 6:
                    _six_by_two(a, left_row, left_step, b, right_step, d, result_row, terms)
                elif height == 4:
                    _four_by_two(a, left_row, left_step, b, right_step, d, result_row, terms)
                elif height == 2:
                    _two_by_two(a, left_row, left_step, b, right_step, d, result_row, terms)
                else:
                    _one_by_two(a, left_row, left_step, b, right_step, d, result_row, terms)
                register += 2
            else:
                if height == 6:
                    _six_by_one(a, left_row, left_step, b, right_step, d, result_row, terms)
                elif height == 4:
                    _four_by_one(a, left_row, left_step, b, right_step, d, result_row, terms)
                elif height == 2:
                    _two_by_one(a, left_row, left_step, b, right_step, d, result_row, terms)
                else:
                    _one_by_one(a, left_row, left_step, b, right_step, d, result_row, terms)
                register += 1
        row += height


@jitted
def transpose(
    source: int, source_row: int, target: int, target_row: int, rows: int, columns: int
) -> None:
    """Transpose float32; both numbers of rows and columns must be multiples of `LANES`.

    Args:
        source: Address of ``[rows, columns]``.
        source_row: Stride of its rows in bytes.
        target: Address of ``[columns, rows]``.
        target_row: Stride of its rows in bytes.
        rows: Of the source.
        columns: Of the source.
    """
    for row in range(0, rows, LANES):
        for column in range(0, columns, LANES):
            transpose_block(
                source + row * source_row + column * 4,
                source_row,
                target + column * target_row + row * 4,
                target_row,
            )
