"""The random stream of `numpy.random.RandomState`: MT19937 and the legacy methods Crafter calls.

A stream is ``[625] uint32``: the 624 words of the generator's state and the number of them that
have been drawn. See Matsumoto and Nishimura (1998), "Mersenne Twister".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.crafter_native.world_compiler import compiled, int32, int64, uint32, uint64

Stream = NDArray[np.uint32]

STATE_WORDS = 624
STREAM_WORDS = STATE_WORDS + 1
_SHIFT = 397
# Numba would mix signed literals with unsigned words into signed or floating-point results.
_UPPER = uint32(0x80000000)
_LOWER = uint32(0x7FFFFFFF)
_TWIST = uint32(0x9908B0DF)
_TEMPER_B = uint32(0x9D2C5680)
_TEMPER_C = uint32(0xEFC60000)
_ZERO, _ONE = uint32(0), uint32(1)
_5, _6, _7, _11, _15, _18, _30 = (uint32(shift) for shift in (5, 6, 7, 11, 15, 18, 30))
_SEED_FACTOR = uint64(1812433253)
_WORD = uint64(0xFFFFFFFF)
_TO_UNIT = 1.0 / 9007199254740992.0


@compiled
def seed_stream(stream: Stream, seed: int) -> None:
    """Set the initial state of ``RandomState(seed)``; ``0 <= seed < 2**32``."""
    word = uint64(seed)
    for index in range(STATE_WORDS):
        stream[index] = uint32(word)
        word = (_SEED_FACTOR * (word ^ (word >> uint64(30))) + uint64(index + 1)) & _WORD
    stream[STATE_WORDS] = STATE_WORDS


@compiled
def next_word(stream: Stream) -> int:
    """Return the next 32 bits."""
    position = int64(stream[STATE_WORDS])
    if position == STATE_WORDS:
        _twist(stream)
        position = 0
    stream[STATE_WORDS] = uint32(position + 1)
    return _temper(stream[uint64(position)])


@compiled
def uniform(stream: Stream) -> float:
    """Return the next number of ``uniform()`` and ``random_sample()``: 53 bits in [0, 1)."""
    high = next_word(stream)
    low = next_word(stream)
    return _unit(high, low)


@compiled
def below(stream: Stream, bound: int) -> int:
    """Return the next number of ``randint(0, bound)``, for ``1 <= bound <= 2**31``.

    Bits beyond those of ``bound - 1`` are masked off and values that are too large are drawn
    again; if only 0 is possible, nothing is drawn.
    """
    largest = uint32(bound - 1)
    if largest == _ZERO:
        return 0
    mask = largest
    for shift in (1, 2, 4, 8, 16):
        mask = uint32(mask | (mask >> uint32(shift)))
    value = uint32(next_word(stream) & mask)
    while value > largest:
        value = uint32(next_word(stream) & mask)
    return int64(value)


@compiled
def fill_uniform(
    stream: Stream, low: float, span: float, words: Stream, out: NDArray[np.float64]
) -> None:
    """Write the transposed result of ``uniform(low, low + span, (columns, rows))``.

    Args:
        stream: Advanced by two words per value.
        low: Smallest value.
        span: Largest value minus ``low``.
        words: Temporary memory of at least two words per value.
        out: ``[rows, columns] float64``, written.
    """
    rows, columns = out.shape
    wanted = 2 * rows * columns
    filled = 0
    while filled < wanted:
        position = int64(stream[STATE_WORDS])
        if position == STATE_WORDS:
            _twist(stream)
            position = 0
        taken = min(STATE_WORDS - position, wanted - filled)
        for index in range(taken):
            words[filled + index] = _temper(stream[position + index])
        stream[STATE_WORDS] = uint32(position + taken)
        filled += taken
    for column in range(columns):
        for row in range(rows):
            index = 2 * (column * rows + row)
            out[row, column] = low + span * _unit(words[index], words[index + 1])


@compiled
def skip_uniform(stream: Stream, count: int) -> None:
    """Advance the stream by ``count`` values of `uniform`, without computing them."""
    position = int64(stream[STATE_WORDS]) + 2 * count
    while position > STATE_WORDS:
        _twist(stream)
        position -= STATE_WORDS
    stream[STATE_WORDS] = uint32(position)


@compiled
def _unit(high: int, low: int) -> float:
    # Both have at most 27 bits, and signed 32-bit integers convert in one instruction.
    return (int32(high >> _5) * 67108864.0 + int32(low >> _6)) * _TO_UNIT


@compiled
def _temper(word: int) -> int:
    word = uint32(word ^ (word >> _11))
    word = uint32(word ^ ((word << _7) & _TEMPER_B))
    word = uint32(word ^ ((word << _15) & _TEMPER_C))
    return uint32(word ^ (word >> _18))


@compiled
def _mix(word: int, following: int) -> int:
    joined = uint32((word & _UPPER) | (following & _LOWER))
    odd = uint32(_ZERO - (joined & _ONE))
    return uint32((joined >> _ONE) ^ (odd & _TWIST))


@compiled
def _twist(stream: Stream) -> None:
    """Replace all words of the state by the next ones."""
    wrap = STATE_WORDS - _SHIFT
    for index in range(wrap):
        stream[index] = stream[index + _SHIFT] ^ _mix(stream[index], stream[index + 1])
    for index in range(wrap, STATE_WORDS - 1):
        stream[index] = stream[index - wrap] ^ _mix(stream[index], stream[index + 1])
    last = STATE_WORDS - 1
    stream[last] = stream[_SHIFT - 1] ^ _mix(stream[last], stream[0])
