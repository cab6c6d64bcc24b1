"""The check for numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastrl.compiled import cached_njit
from fastrl.shared.schema import Stage


class BadNumber(NamedTuple):
    """A number that is not finite.

    Attributes:
        field: Name of the field, with the leaf of its space.
        where: Step, slot, and perhaps others.
        value: NaN or an infinity.
        stage: When the field is written within a step.
    """

    field: str
    where: tuple[int, ...]
    value: float
    stage: Stage


Block = tuple[NDArray[Any], int, int]
"""An array ``[T, B · width]``, and which of its columns are meant: first, and after the last."""


class FiniteCheck:
    """Checks the floats in some slots of a bank that is complete there.

    Args:
        banks: The float tensors ``[T or another, B, *]`` of every bank, contiguous.
        slots: Which to check.
    """

    def __init__(self, banks: Iterable[Iterable[Tensor]], slots: slice) -> None:
        self._banks = [[_block(tensor.numpy(), slots) for tensor in bank] for bank in banks]

    def passes(self, bank: int) -> bool:
        """Return whether all of them are finite."""
        return all(map(_passes, self._banks[bank]))


def is_finite(numbers: NDArray[Any]) -> bool:
    """Return whether all of a contiguous array are finite."""
    flat = numbers.reshape(1, -1)
    return _passes((flat, 0, flat.shape[1]))


def first_not_finite(numbers: NDArray[Any]) -> tuple[int, ...]:
    """Return the index of the first element of any array that is not finite."""
    flat = int(np.flatnonzero(~np.isfinite(numbers).ravel())[0])
    return tuple(int(index) for index in np.unravel_index(flat, numbers.shape))


def first_cause(found: Iterable[BadNumber]) -> BadNumber | None:
    """Return the bad number from which the others may have come; None if there is none.

    That is the one of the earliest step, and within a step of the earliest stage.

    Args:
        found: The first of each field.
    """
    return min(found, key=lambda bad: (bad.where[0], bad.stage), default=None)


def compile_finite() -> None:
    """Compile the look, or load what was compiled before."""
    is_finite(np.zeros(1, np.float32))


def _block(array: NDArray[Any], slots: slice) -> Block:
    width = math.prod(array.shape[2:])
    return array.reshape(len(array), -1), slots.start * width, slots.stop * width


def _passes(block: Block) -> bool:
    rows, left, right = block
    if rows.dtype == np.float16:  # which numba does not know
        return bool(np.isfinite(rows[:, left:right]).all())
    return bool(_block_is_finite(rows, left, right))


@partial(cached_njit, fastmath={"reassoc"})
def _block_is_finite(rows: NDArray[np.floating[Any]], left: int, right: int) -> bool:
    """Return whether a block is finite; terms may be added in any order, so many at once."""
    total = np.float32(0)
    for t in range(len(rows)):
        row = rows[t, left:right]
        for i in range(len(row)):
            total += row[i] - row[i]  # NaN unless it is finite
    return bool(total == 0)
