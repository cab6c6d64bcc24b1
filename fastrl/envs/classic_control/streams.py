"""Random numbers by key and count: an environment's stream is the same whoever draws from it.

Number c of the stream with key k is SplitMix64's output c from state k (Steele, Lea and Flood 2014,
https://doi.org/10.1145/2660193.2660195), of which the upper 24 bits make a float32 in [0, 1). The
key is the first output from the seed, so that streams of neighbouring seeds have nothing in common.
Nothing is kept but a count: beginning an episode costs no more than a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.classic_control.kernel_parts import GOLDEN, MIX_1, MIX_2


def new_streams(seeds: Sequence[int]) -> NDArray[np.uint64]:
    """Return uint64 ``[2, n]``: the key of each seed's stream, and 0 numbers drawn from it."""
    states = np.array([int(seed) % 2**64 for seed in seeds], np.uint64)
    return np.stack([_outputs(states), np.zeros_like(states)])


def peek(streams: NDArray[np.uint64], envs: Any, size: int) -> NDArray[np.float32]:  # noqa: ANN401
    """Return the next ``size`` numbers of some streams, ``[m, size]``, without drawing them.

    Args:
        streams: uint64 ``[2, n]``; see `new_streams`.
        envs: Index of m environments: a slice, a mask or indices.
        size: Numbers from each.
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
