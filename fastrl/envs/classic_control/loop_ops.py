"""The operations of `tensor_ops` on one environment's numbers, compiled. Floats are float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

from numba import float32 as f32
from numba import int32, njit, types, uint64
from numba.extending import overload
from numpy.typing import NDArray

_TWO_PI_1 = f32(6.28125)
_TWO_PI_2 = f32(2 * math.pi - 6.28125)
_TURNS = f32(1 / (2 * math.pi))
_QUARTERS = f32(2 / math.pi)
# A quarter turn in three parts: products of the first two with small integers are exact.
_QUARTER_1, _QUARTER_2, _QUARTER_3 = f32(1.5703125), f32(4.837512969970703e-4), f32(7.549789949e-8)

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB

number = f32
"""Marks float32 constants; others would turn results into double."""

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
"""``contract`` allows fused multiply-add. Nothing is reordered, and NaN and infinity
keep their meaning. Divisions by zero are not checked, as checks would prevent vectorisation."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that only compiled functions call."""
    return cast(Callable[..., Any], njit(**OPTIONS)(function))


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as part of every caller, as a loop with a call is not vectorised."""
    return cast(
        Callable[..., Any],
        njit(forceinline=True, error_model="numpy", fastmath={"contract"})(function),
    )


@inlined
def nearest(x: float) -> int:
    """Round to the nearest integer, int32."""
    return int32(x + (f32(0.5) if x >= f32(0) else f32(-0.5)))  # type: ignore[call-overload, no-any-return]


@inlined
def sincos(angle: float) -> tuple[float, float]:
    """Return sine and cosine of an angle in rad, within 1.2e-7 for up to a thousand turns.

    The polynomials are those of Cephes' single-precision functions (Moshier 1989), for an eighth
    of a turn to both sides.
    """
    quarter = nearest(angle * _QUARTERS)
    count = f32(quarter)
    x = ((angle - count * _QUARTER_1) - count * _QUARTER_2) - count * _QUARTER_3
    z = x * x
    sine = f32(-1.6666654611e-1) + z * (f32(8.3321608736e-3) + z * f32(-1.9515295891e-4))
    sine = x + x * z * sine
    cosine = f32(4.166664568e-2) + z * (f32(-1.388731625e-3) + z * f32(2.443315711e-5))
    cosine = f32(1) - f32(0.5) * z + z * z * cosine
    swapped = (quarter & 1) != 0
    s = cosine if swapped else sine
    c = sine if swapped else cosine
    return (-s if (quarter & 2) != 0 else s), (-c if ((quarter + 1) & 2) != 0 else c)


@inlined
def wrapped(angle: float) -> float:
    """Return the same angle within ± π, in rad."""
    turns = f32(nearest(angle * _TURNS))
    return (angle - turns * _TWO_PI_1) - turns * _TWO_PI_2  # type: ignore[no-any-return]


@inlined
def sin(angle: float) -> float:
    """Return the sine of an angle in rad; see `sincos`."""
    return sincos(angle)[0]  # type: ignore[no-any-return]


@inlined
def cos(angle: float) -> float:
    """Return the cosine of an angle in rad; see `sincos`."""
    return sincos(angle)[1]  # type: ignore[no-any-return]


@inlined
def where(condition: bool, chosen: float, other: float) -> float:
    """Return one of two numbers."""
    return chosen if condition else other


@inlined
def clip(x: float, low: float, high: float) -> float:
    """Return the number from low to high that is nearest to x."""
    return min(max(x, low), high)


@inlined
def only(action: float) -> float:
    """Return the action, as the loops have only its one component."""
    return action


@inlined
def columns(*values: float) -> tuple[float, ...]:
    """Return the components of an observation."""
    return values


@inlined
def filled(like: float, value: float) -> float:
    """Return a constant."""
    return f32(value)  # type: ignore[return-value]


@inlined
def as_float(x: float, like: float) -> float:
    """Return a number or a truth value, 0 or 1, as float32."""
    return f32(x)  # type: ignore[return-value]


@inlined
def never(like: float) -> bool:
    """Return False."""
    return False


@inlined
def no_time(like: float) -> int:
    """Return the time at which an episode begins; the loops count time themselves."""
    return 0


@inlined
def times_square(factor: float, x: float) -> float:
    """Return ``factor * x²`` as ``(factor * x) * x``."""
    return factor * x * x


def drawn(noise: NDArray[Any], env: int, index: int) -> Any:
    """Return random number ``index`` of the episode that an environment begins, in [0, 1).

    Args:
        noise: float32 ``[n, size]``: the numbers; or uint64 ``[2, n]``: the key of each
            environment's stream, and the number of its draws so far.
        env: Index of the environment.
        index: Index of the number.
    """


@overload(drawn, strict=False)
def _drawn(noise: Any, env: Any, index: Any) -> Any:
    if noise.dtype != types.uint64:
        return lambda noise, env, index: noise[env, index]

    def of_stream(noise: NDArray[Any], env: int, index: int) -> Any:
        # SplitMix64 (Steele, Lea and Flood 2014), as in `new_streams`.
        z = noise[0, env] + (noise[1, env] + uint64(index) + uint64(1)) * uint64(GOLDEN)
        z = (z ^ (z >> uint64(30))) * uint64(MIX_1)
        z = (z ^ (z >> uint64(27))) * uint64(MIX_2)
        return f32((z ^ (z >> uint64(31))) >> uint64(40)) * f32(2**-24)

    return of_stream


def move_on(noise: NDArray[Any], env: int, size: int) -> None:
    """Advance an environment's stream by ``size`` numbers; do nothing for given noise."""


@overload(move_on, strict=False)
def _move_on(noise: Any, env: Any, size: Any) -> Any:
    if noise.dtype != types.uint64:
        return lambda noise, env, size: None

    def of_stream(noise: NDArray[Any], env: int, size: int) -> None:
        noise[1, env] += uint64(size)

    return of_stream


@inlined
def uniform(noise: tuple[NDArray[Any], int], index: int, low: float, high: float) -> Any:
    """Return a random number in [low, high), of the noise of an environment; see `drawn`."""
    return low + (high - low) * drawn(noise[0], noise[1], index)
