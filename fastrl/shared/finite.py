"""The look for numbers that are not finite, as cheap as it can be made."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastrl.compiled import cached_njit

CHECKED_BYTES = 1 << 19
"""Looked at together: more would have left the caches by then, less would cost more calls."""


class BadNumber(NamedTuple):
    """A number that is not finite.

    Attributes:
        field: Of the table.
        where: Step, slot, and perhaps others.
        value: NaN or an infinity.
    """

    field: str
    where: tuple[int, ...]
    value: float


_ORDER = {"action": 1, "log_prob": 1, "value": 1, "reward": 2, "final_value": 3}
Block = tuple[NDArray[Any], int, int, int, int]
"""An array ``[T, B · width]``, and which of its rows and columns are meant."""


class FiniteCheck:
    """The look at the floats in some slots of a bank, by whoever has just completed them.

    Parts of some steps each are looked at as they are completed, from the caches.

    Args:
        banks: The float tensors ``[T or T+1, B, *]`` of every bank, contiguous.
        slots: Which to look at.
        length: T.

    Attributes:
        part_steps: Steps of a part; the last may have fewer.
    """

    def __init__(self, banks: Iterable[Iterable[Tensor]], slots: slice, length: int) -> None:
        arrays = [[tensor.numpy() for tensor in bank] for bank in banks]
        step_bytes = sum(array[0, slots].nbytes for array in arrays[0])
        self.part_steps = max(1, CHECKED_BYTES // step_bytes)
        ends = [*range(self.part_steps, length, self.part_steps), None]
        # The last part has the last observations and values as well.
        parts = [slice(t, end) for t, end in zip([0, *ends[:-1]], ends, strict=True)]
        self._banks = [
            [[_block(array, part, slots) for array in bank] for part in parts] for bank in arrays
        ]

    def part_passes(self, bank: int, t: int) -> bool:
        """Return whether all of the part that begins at step ``t`` are finite."""
        return _pass(self._banks[bank][t // self.part_steps])

    def last_passes(self, bank: int) -> bool:
        """Return the same of the last part, which may be shorter."""
        return _pass(self._banks[bank][-1])

    def passes(self, bank: int) -> bool:
        """Return the same of all parts."""
        return all(map(_pass, self._banks[bank]))


def is_finite(numbers: NDArray[Any]) -> bool:
    """Return whether all of a contiguous array are finite."""
    flat = numbers.reshape(1, -1)
    return _pass([(flat, 0, 1, 0, flat.shape[1])])


def first_not_finite(numbers: NDArray[Any]) -> tuple[int, ...]:
    """Return the index of the first element of any array that is not finite."""
    flat = int(np.flatnonzero(~np.isfinite(numbers).ravel())[0])
    return tuple(int(index) for index in np.unravel_index(flat, numbers.shape))


def first_cause(found: Iterable[BadNumber]) -> BadNumber | None:
    """Return the bad number from which the others may have come; None if there is none.

    That is the one of the earliest step. Within a step the policy observes, then answers, and what
    the environment returns comes last.

    Args:
        found: The first of each field.
    """
    return min(
        found,
        key=lambda bad: (bad.where[0], _ORDER.get(bad.field.partition("/")[0], 0)),
        default=None,
    )


def compile_finite() -> None:
    """Compile the look, or load what was compiled before."""
    is_finite(np.zeros(1, np.float32))


def _block(array: NDArray[Any], steps: slice, slots: slice) -> Block:
    first, stop, _ = steps.indices(len(array))
    width = math.prod(array.shape[2:])
    rows = array.reshape(len(array), -1)
    return rows, first, stop, slots.start * width, slots.stop * width


def _pass(blocks: Iterable[Block]) -> bool:
    for block in blocks:
        rows, first, stop, left, right = block
        if rows.dtype == np.float16:  # which numba does not know
            if not np.isfinite(rows[first:stop, left:right]).all():
                return False
        elif not _block_is_finite(*block):
            return False
    return True


@partial(cached_njit, fastmath={"reassoc"})
def _block_is_finite(
    rows: NDArray[np.floating[Any]], first: int, stop: int, left: int, right: int
) -> bool:
    """Return whether a block is finite; terms may be added in any order, so many at once."""
    total = np.float32(0)
    for t in range(first, stop):
        row = rows[t, left:right]
        for i in range(len(row)):
            total += row[i] - row[i]  # NaN unless it is finite
    return bool(total == 0)
