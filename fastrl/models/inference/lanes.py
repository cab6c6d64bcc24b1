"""Vector registers for numba: functions of several float32 numbers, and matrix products.

LLVM vectorises a loop over rows only if it can prove that memory does not alias, which it
cannot here; explicit registers keep the numbers in registers. Memory is addressed
by plain integers, so that a compiled function takes two numbers and has one signature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import llvmlite.binding
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 8
"""Numbers per register; LLVM splits it if the hardware's registers are smaller."""
LANE_BYTES = 4 * LANES
_BLOCK = 8
"""Rows of a product that are computed together beside a single register."""

_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT32, LANES)


class LanesType(types.Type):
    """numba's type of ``LANES`` float32 numbers."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes{LANES}")


lanes_type = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: types.Type) -> None:
        super().__init__(manager, numba_type, _FLOATS)  # type: ignore[no-untyped-call]


Emit = Callable[..., Any]
Function = TypeVar("Function", bound=Callable[..., Any])


def jitted(function: Function) -> Function:
    """Compile a function into the jitted functions that call it."""
    return cast(Function, njit(function))


def inlined(function: Function) -> Function:
    """Compile as `jitted`, again for each call: constants among its arguments cost no time."""
    return cast(Function, njit(forceinline=True)(function))


def _operation(result: types.Type, arguments: tuple[types.Type, ...], emit: Emit) -> Any:
    """Return a function for jitted code that ``emit(builder, *arguments)`` writes in LLVM IR."""
    signature = result(*arguments)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emitted = emit(builder, *values)
        return context.get_dummy_value() if result is types.none else emitted

    # numba reads the number of arguments from the function's own signature.
    if not arguments:
        return intrinsic(lambda typing_context: (signature, generate))
    if len(arguments) == 1:
        return intrinsic(lambda typing_context, a: (signature, generate))
    if len(arguments) == 2:
        return intrinsic(lambda typing_context, a, b: (signature, generate))
    if len(arguments) == 3:
        return intrinsic(lambda typing_context, a, b, c: (signature, generate))
    return intrinsic(lambda typing_context, a, b, c, d: (signature, generate))


def _pointer(builder: Any, address: Any, pointee: ir.Type) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def _read(pointee: ir.Type, align: int) -> Emit:
    def emit(builder: Any, address: Any) -> Any:
        return builder.load(_pointer(builder, address, pointee), align=align)

    return emit


def _write(pointee: ir.Type, align: int) -> Emit:
    def emit(builder: Any, address: Any, value: Any) -> None:
        builder.store(value, _pointer(builder, address, pointee), align=align)

    return emit


def _emit_acquire(builder: Any, address: Any) -> Any:
    return builder.load_atomic(_pointer(builder, address, _INT64), "acquire", align=8)


def _emit_release(builder: Any, address: Any, value: Any) -> None:
    builder.store_atomic(value, _pointer(builder, address, _INT64), "release", align=8)


def _emit_exchange(builder: Any, address: Any, expected: Any, value: Any) -> Any:
    found = builder.cmpxchg(
        _pointer(builder, address, _INT64), expected, value, "acq_rel", "acquire"
    )
    return builder.extract_value(found, 0)


def _emit_give_way(builder: Any) -> None:
    name = "sched_yield"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(_INT32, []), name)
    builder.call(function, [])


def _constant(number: int, vector: ir.Type) -> ir.Constant:
    return ir.Constant(vector, [number] * LANES)


def emit_load(builder: Any, address: Any) -> Any:
    """Write the instruction that reads lanes from an address."""
    return builder.load(_pointer(builder, address, _FLOATS), align=4)


def emit_store(builder: Any, address: Any, values: Any) -> None:
    """Write the instruction that writes lanes to an address."""
    builder.store(values, _pointer(builder, address, _FLOATS), align=4)


def emit_broadcast(builder: Any, address: Any) -> Any:
    """Write instructions that read a number from an address into every lane."""
    return _emit_splat(builder, builder.load(_pointer(builder, address, _FLOAT), align=4))


def emit_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Write the instruction of a · b + c."""
    return _emit_call("fma")(builder, a, b, c)


def emit_shuffle(builder: Any, low: Any, high: Any, chosen: list[int]) -> Any:
    """Write the instruction that takes lanes of ``low``, numbered first, and of ``high``."""
    return builder.shuffle_vector(low, high, ir.Constant(_INTS, chosen))


def _emit_splat(builder: Any, number: Any) -> Any:
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, number, _INT32(0))
    return builder.shuffle_vector(first, undefined, _constant(0, _INTS))


def _emit_call(name: str) -> Emit:
    def emit(builder: Any, *values: Any) -> Any:
        full_name = f"llvm.{name}.v{LANES}f32"
        function = builder.module.globals.get(full_name)
        if function is None:
            function_type = ir.FunctionType(_FLOATS, [_FLOATS] * len(values))
            function = ir.Function(builder.module, function_type, full_name)
        return builder.call(function, values)

    return emit


def _emit_choose(builder: Any, a: Any, b: Any, if_less_equal: Any, otherwise: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<=", a, b), if_less_equal, otherwise)


def _emit_total(builder: Any, a: Any) -> Any:
    distance = LANES // 2
    while distance:
        others = [lane ^ distance for lane in range(LANES)]
        a = builder.fadd(a, emit_shuffle(builder, a, a, others))
        distance //= 2
    return builder.extract_element(a, _INT32(0))


def _emit_transpose(
    builder: Any, source: Any, source_row: Any, target: Any, target_row: Any
) -> None:
    def row_of(start: Any, row: int, stride: Any) -> Any:
        return builder.add(start, builder.mul(stride, _INT64(row)))

    rows = [emit_load(builder, row_of(source, row, source_row)) for row in range(LANES)]
    distance = LANES // 2
    while distance:
        # Exchange the quarters of all blocks of twice this size that are not on the diagonal.
        kept = [lane if not lane & distance else LANES + lane - distance for lane in range(LANES)]
        moved = [lane + distance if not lane & distance else LANES + lane for lane in range(LANES)]
        for row in range(LANES):
            if not row & distance:
                low, high = rows[row], rows[row + distance]
                rows[row] = emit_shuffle(builder, low, high, kept)
                rows[row + distance] = emit_shuffle(builder, low, high, moved)
        distance //= 2
    for row, numbers in enumerate(rows):
        emit_store(builder, row_of(target, row, target_row), numbers)


def _emit_times_power_of_two(builder: Any, a: Any, power: Any) -> Any:
    biased = builder.add(builder.fptosi(power, _INTS), _constant(127, _INTS))
    return builder.fmul(a, builder.bitcast(builder.shl(biased, _constant(23, _INTS)), _FLOATS))


_BITS_OF_THREE_QUARTERS = 0x3F400000


def _emit_power(builder: Any, a: Any) -> Any:
    above = builder.sub(builder.bitcast(a, _INTS), _constant(_BITS_OF_THREE_QUARTERS, _INTS))
    return builder.ashr(above, _constant(23, _INTS))


def _emit_exponent(builder: Any, a: Any) -> Any:
    return builder.sitofp(_emit_power(builder, a), _FLOATS)


def _emit_mantissa(builder: Any, a: Any) -> Any:
    power = builder.shl(_emit_power(builder, a), _constant(23, _INTS))
    return builder.bitcast(builder.sub(builder.bitcast(a, _INTS), power), _FLOATS)


_int64, _lanes = types.int64, lanes_type

pointer = _operation(
    types.voidptr, (_int64,), lambda builder, address: _pointer(builder, address, ir.IntType(8))
)
read_float32 = _operation(types.float32, (_int64,), _read(_FLOAT, 4))
read_int8 = _operation(types.int8, (_int64,), _read(ir.IntType(8), 1))
read_int64 = _operation(types.int64, (_int64,), _read(_INT64, 8))
write_int64 = _operation(types.none, (_int64, _int64), _write(_INT64, 8))
write_float32 = _operation(types.none, (_int64, types.float32), _write(_FLOAT, 4))
write_int8 = _operation(types.none, (_int64, types.int8), _write(ir.IntType(8), 1))

acquire_int64 = _operation(types.int64, (_int64,), _emit_acquire)
"""Read a number that another thread writes with `release_int64`; its earlier writes are visible."""
release_int64 = _operation(types.none, (_int64, _int64), _emit_release)
exchange_int64 = _operation(types.int64, (_int64,) * 3, _emit_exchange)
"""Compare and exchange: write the third number if the memory has the second; return the old one."""
give_way = _operation(types.none, (), _emit_give_way)
"""Yield this core to another thread that waits for it."""

load = _operation(_lanes, (_int64,), emit_load)
store = _operation(types.none, (_int64, _lanes), emit_store)
splat = _operation(_lanes, (types.float32,), _emit_splat)

add = _operation(_lanes, (_lanes,) * 2, lambda builder, a, b: builder.fadd(a, b))
sub = _operation(_lanes, (_lanes,) * 2, lambda builder, a, b: builder.fsub(a, b))
mul = _operation(_lanes, (_lanes,) * 2, lambda builder, a, b: builder.fmul(a, b))
div = _operation(_lanes, (_lanes,) * 2, lambda builder, a, b: builder.fdiv(a, b))
fma = _operation(_lanes, (_lanes,) * 3, _emit_call("fma"))
"""a · b + c, rounded once."""
rint = _operation(_lanes, (_lanes,), _emit_call("nearbyint"))
choose = _operation(_lanes, (_lanes,) * 4, _emit_choose)
"""c where a <= b, otherwise d; d also where a or b is NaN."""

total = _operation(types.float32, (_lanes,), _emit_total)
"""The sum over all lanes."""

transpose_block = _operation(types.none, (_int64,) * 4, _emit_transpose)
"""Transpose ``[LANES, LANES]``: the source, the stride of its rows in bytes, target and stride."""

_times_power_of_two = _operation(_lanes, (_lanes,) * 2, _emit_times_power_of_two)
_exponent = _operation(_lanes, (_lanes,), _emit_exponent)
_mantissa = _operation(_lanes, (_lanes,), _emit_mantissa)


@jitted
def fill(number: float) -> Any:
    """Return a constant in every lane."""
    return splat(types.float32(number))


@jitted
def clamp(a: Any, low: Any, high: Any) -> Any:
    """Return ``a`` within bounds; NaN stays NaN."""
    return choose(a, low, low, choose(high, a, high, a))


@jitted
def tanh(a: Any) -> Any:
    """Return the hyperbolic tangent, within 4e-7.

    A ratio of polynomials, fitted to a relative error of 7e-9 on [-8, 8]; beyond, tanh is 1 to
    within 3e-7. The rest is float32 rounding.
    """
    x = clamp(a, fill(-8.0), fill(8.0))
    z = mul(x, x)
    p = fma(z, fill(1.523059900421231e-08), fill(2.189479346270673e-05))
    p = fma(z, p, fill(0.003571606008335948))
    p = fma(z, p, fill(0.13444504141807556))
    p = fma(z, p, fill(1.0))
    q = fma(z, fill(8.522520715814608e-07), fill(0.00034113050787709653))
    q = fma(z, q, fill(0.026164473965764046))
    q = fma(z, q, fill(0.4677783250808716))
    q = fma(z, q, fill(1.0))
    return div(mul(x, p), q)


@jitted
def exp(a: Any) -> Any:
    """Return e to the power of ``a``, within 2e-7 of itself; 0 below -87, constant above 87.

    exp(a) = 2^k · exp(r) with k whole and r within ±log(2) / 2, and exp(r) by its Taylor series.
    """
    x = clamp(a, fill(-87.0), fill(87.0))
    k = rint(mul(x, fill(1.4426950408889634)))
    # log(2) in two parts, the first short enough for k times it to be exact.
    r = fma(k, fill(-0.693359375), x)
    r = fma(k, fill(2.12194440e-4), r)
    p = fma(r, fill(1 / 5040), fill(1 / 720))
    p = fma(r, p, fill(1 / 120))
    p = fma(r, p, fill(1 / 24))
    p = fma(r, p, fill(1 / 6))
    p = fma(r, p, fill(1 / 2))
    p = fma(r, p, fill(1.0))
    p = fma(r, p, fill(1.0))
    return choose(a, fill(-87.0), fill(0.0), _times_power_of_two(p, k))


@jitted
def log(a: Any) -> Any:
    """Return the natural logarithm of positive normal numbers, within 2e-7.

    log(a) = k · log(2) + 2 · artanh(s) with s = (m - 1) / (m + 1) and a = 2^k · m, m in
    [0.75, 1.5), by the series of artanh.
    """
    m = _mantissa(a)
    s = div(sub(m, fill(1.0)), add(m, fill(1.0)))
    z = mul(s, s)
    p = fma(z, fill(2 / 9), fill(2 / 7))
    p = fma(z, p, fill(2 / 5))
    p = fma(z, p, fill(2 / 3))
    p = fma(z, p, fill(2.0))
    return fma(_exponent(a), fill(0.6931471805599453), mul(s, p))


@jitted
def sigmoid(a: Any) -> Any:
    """Return 1 / (1 + exp(-a))."""
    return div(fill(1.0), add(fill(1.0), exp(sub(fill(0.0), a))))


@jitted
def softplus(a: Any) -> Any:
    """Return log(1 + exp(a)) without overflow."""
    zero = fill(0.0)
    magnitude = choose(a, zero, sub(zero, a), a)
    positive = choose(a, zero, zero, a)
    return add(positive, log(add(fill(1.0), exp(sub(zero, magnitude)))))


def _address(builder: Any, start: Any, index: int, stride: Any) -> Any:
    return builder.add(start, builder.mul(stride, _INT64(index)))


def _block(rows: int, registers: int) -> Any:
    """Return a function for jitted code that adds a product to a block of the result.

    It takes the arguments of `add_product`, without the numbers of rows and registers.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, left_row, left_step, right, right_step, result, result_row, terms, start = arguments
        starts = [_address(builder, left, row, left_row) for row in range(rows)]
        columns = [_INT64(number * LANE_BYTES) for number in range(registers)]
        targets = [
            builder.add(_address(builder, result, row, result_row), column)
            for row in range(rows)
            for column in columns
        ]
        sums = [cgutils.alloca_once(builder, _FLOATS) for _ in targets]  # type: ignore[no-untyped-call]
        with builder.if_else(builder.icmp_signed("!=", start, _INT64(0))) as (given, missing):
            with given:
                for number, total in enumerate(sums):
                    place = builder.add(start, _INT64(4 * (number // registers)))
                    builder.store(emit_broadcast(builder, place), total)
            with missing:
                for target, total in zip(targets, sums, strict=True):
                    builder.store(emit_load(builder, target), total)
        with cgutils.for_range(builder, terms) as loop:
            step = builder.mul(loop.index, left_step)
            source = builder.add(right, builder.mul(loop.index, right_step))
            factors = [emit_load(builder, builder.add(source, column)) for column in columns]
            for row, start in enumerate(starts):
                number = emit_broadcast(builder, builder.add(start, step))
                for factor, total in zip(factors, sums[row * registers :], strict=False):
                    added = emit_fma(builder, number, factor, builder.load(total))
                    builder.store(added, total)
        for target, total in zip(targets, sums, strict=True):
            emit_store(builder, target, builder.load(total))
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
        start: Any,
    ) -> Any:
        return types.none(*[types.int64] * 9), generate

    return add_block


# Number of sums that fit into registers beside their factors.
_six_by_two, _four_by_two, _two_by_two, _one_by_two = (_block(rows, 2) for rows in (6, 4, 2, 1))
_eight_by_one, _six_by_one, _four_by_one, _two_by_one, _one_by_one = (
    _block(rows, 1) for rows in (_BLOCK, 6, 4, 2, 1)
)


@jitted
def _height(rows: int, registers: int) -> int:
    """Return the rows of the next block: as many sums as hide the latency of an FMA."""
    if rows >= _BLOCK and registers == 1:
        return _BLOCK
    return 6 if rows >= 6 else 4 if rows >= 4 else 2 if rows >= 2 else 1


@jitted
def add_product(  # noqa: C901 - a branch for each size of a block
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
    start: int,
) -> None:
    """Add ``left · right`` to ``result``; all are addresses of float32, and strides are in bytes.

    A block of the result stays in registers during the sum, so a product reads each number from the
    nearest cache and needs no transposed copy. Matrices of 64 × 64 reach most of the speed of one
    core; a call into a library costs as much as such a product.

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
        start: ``[rows]``: numbers with which the sums begin, in place of the result; 0 for none.
    """
    row = 0
    while row < rows:
        a, c, register = left + row * left_row, result + row * result_row, 0
        height, e = _height(rows - row, registers), start + 4 * row if start != 0 else 0
        while registers - register >= 2:
            b, d = right + register * LANE_BYTES, c + register * LANE_BYTES
            if height == 6:
                _six_by_two(a, left_row, left_step, b, right_step, d, result_row, terms, e)
            elif height == 4:
                _four_by_two(a, left_row, left_step, b, right_step, d, result_row, terms, e)
            elif height == 2:
                _two_by_two(a, left_row, left_step, b, right_step, d, result_row, terms, e)
            else:
                _one_by_two(a, left_row, left_step, b, right_step, d, result_row, terms, e)
            register += 2
        if register < registers:
            b, d = right + register * LANE_BYTES, c + register * LANE_BYTES
            if height == _BLOCK:
                _eight_by_one(a, left_row, left_step, b, right_step, d, result_row, terms, e)
            elif height == 6:
                _six_by_one(a, left_row, left_step, b, right_step, d, result_row, terms, e)
            elif height == 4:
                _four_by_one(a, left_row, left_step, b, right_step, d, result_row, terms, e)
            elif height == 2:
                _two_by_one(a, left_row, left_step, b, right_step, d, result_row, terms, e)
            else:
                _one_by_one(a, left_row, left_step, b, right_step, d, result_row, terms, e)
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
        rows: Rows of the source.
        columns: Columns of the source.
    """
    for row in range(0, rows, LANES):
        for column in range(0, columns, LANES):
            transpose_block(
                source + row * source_row + column * 4,
                source_row,
                target + column * target_row + row * 4,
                target_row,
            )
