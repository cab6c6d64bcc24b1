"""The look for numbers that are not finite, as cheap as it can be made.

A sum is finite where all its terms are, unless large ones overflow it. So sums are looked at, and
the numbers themselves only where a sum is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

CHECKED_STEPS = 64
"""Steps that are looked at together: more of them would have left the caches by then (77 µs for 128
steps of 64 environments of CartPole, of which 20 µs are spent where they have not)."""


class FiniteCheck:
    """The look at the floats in some slots of a bank, by whoever has just completed them.

    Parts of `CHECKED_STEPS` steps each are looked at as they are completed, from the caches.

    Args:
        banks: The float tensors ``[T or T+1, B, *]`` of every bank.
        slots: Which to look at.
        length: T.
    """

    def __init__(self, banks: Iterable[Iterable[Tensor]], slots: slice, length: int) -> None:
        starts = range(0, length, CHECKED_STEPS)
        # The last part has the last observations and values as well.
        parts = [slice(t, t + CHECKED_STEPS) for t in starts[:-1]] + [slice(starts[-1], None)]
        self._banks = [
            [[_rows(tensor.numpy()[part, slots]) for tensor in bank] for part in parts]
            for bank in map(list, banks)
        ]

    def part_passes(self, bank: int, t: int) -> bool:
        """Return whether all of the part that begins at step ``t`` are finite.

        False also where their sum overflows.
        """
        return math.isfinite(sum(map(_sum, self._banks[bank][t // CHECKED_STEPS])))

    def last_passes(self, bank: int) -> bool:
        """Return the same of the last part, which may be shorter."""
        return math.isfinite(sum(map(_sum, self._banks[bank][-1])))

    def passes(self, bank: int) -> bool:
        """Return the same of all parts."""
        return math.isfinite(sum(_sum(rows) for part in self._banks[bank] for rows in part))


def is_finite(numbers: NDArray[Any]) -> bool:
    """Return whether all of an array are finite; for large arrays."""
    return math.isfinite(_sum(_rows(numbers))) or bool(np.isfinite(numbers).all())


def few_are_finite(numbers: NDArray[Any]) -> bool:
    """Return whether all of ``[k]`` contiguous floats are finite; takes 0.3 µs for small arrays."""
    total = numbers.dot(_ones(len(numbers), numbers.dtype))
    return math.isfinite(total) or bool(np.isfinite(numbers).all())


def first_not_finite(numbers: NDArray[Any]) -> tuple[int, ...]:
    """Return the index of the first element of any array that is not finite."""
    flat = int(np.flatnonzero(~np.isfinite(numbers).ravel())[0])
    return tuple(int(index) for index in np.unravel_index(flat, numbers.shape))


def _rows(numbers: NDArray[Any]) -> NDArray[Any]:
    return numbers.reshape(len(numbers), -1)


def _sum(rows: NDArray[Any]) -> float:
    # Slots are not contiguous: of all sums this one passes over such rows the fastest, and it does
    # not warn where it overflows.
    if rows.dtype == np.float32:
        return float(np.einsum("ij->", rows))
    return float(np.einsum("ij->", rows, dtype=np.float32))


@lru_cache(maxsize=64)
def _ones(size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.ones(size, dtype)
