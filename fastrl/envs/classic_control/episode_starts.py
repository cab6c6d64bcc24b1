"""First states of episodes: the random stream of each environment, and the options of ``reset``.

Number c of the stream with key k is SplitMix64's output c from state k (Steele, Lea and Flood 2014,
https://doi.org/10.1145/2660193.2660195), of which the upper 24 bits make a float32 in [0, 1). The
key is the first output from the seed, so that streams of neighbouring seeds are unrelated. Only the
count is stored, and an environment's numbers do not depend on the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.arguments import brief, nearest
from fastrl.envs.classic_control.loop_ops import GOLDEN, MIX_1, MIX_2
from fastrl.errors import EnvError

_PENDULUM = {"x_init": "reset_angle", "y_init": "reset_speed"}


def new_streams(seeds: Sequence[int]) -> NDArray[np.uint64]:
    """Return uint64 ``[2, n]``: the key of each seed's stream, and 0 numbers drawn from it."""
    states = np.array([int(seed) % 2**64 for seed in seeds], np.uint64)
    return np.stack([_outputs(states), np.zeros_like(states)])


def peek(streams: NDArray[np.uint64], envs: Any, size: int) -> NDArray[np.float32]:
    """Return the next ``size`` numbers of m streams, ``[m, size]``, without drawing them.

    ``envs`` selects from the streams ``[2, n]``: a slice, a mask or indices.
    """
    keys, counts = (stream[envs, None] for stream in streams)
    numbers = counts + np.arange(size, dtype=np.uint64)
    states: NDArray[np.uint64] = keys + numbers * np.uint64(GOLDEN)
    return (_outputs(states) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _outputs(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = states + np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
    return z ^ (z >> np.uint64(31))


def reset_parameters(
    name: str, options: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the parameters that options of gymnasium's ``reset`` set, or raise an `EnvError`."""
    known = tuple(_PENDULUM) if "reset_angle" in params else ("low", "high")
    for key, value in options.items():
        if key not in known:
            hint = nearest(str(key), known) or f"; it knows {' and '.join(known)}"
            raise EnvError(f"'{name}' knows no reset option '{key}'{hint}")
        if not isinstance(value, Real) or isinstance(value, bool) or not np.isfinite(float(value)):
            raise EnvError(f"reset option '{key}' must be a number, got {brief(value)}")
        if key in _PENDULUM and value < 0:
            raise EnvError(f"reset option '{key}' must not be negative, got {float(value)}")
    if "reset_angle" in params:
        return {_PENDULUM[key]: float(value) for key, value in options.items()}
    if "reset_low" in params:
        low, high = _bounds(options, params["reset_low"], params["reset_high"])
        return {"reset_low": low, "reset_high": high}
    center, bound = params["reset_center"], params["reset_bound"]
    low, high = _bounds(options, center - bound, center + bound)
    return {"reset_center": (low + high) / 2, "reset_bound": (high - low) / 2}


def _bounds(options: Mapping[str, Any], low: Any, high: Any) -> tuple[Any, Any]:
    low, high = (
        float(options[key]) if key in options else value
        for key, value in (("low", low), ("high", high))
    )
    if np.any(low > high):
        raise EnvError(
            f"reset option 'low' must not be above 'high', got {np.max(low)} and {np.min(high)}"
        )
    return low, high
