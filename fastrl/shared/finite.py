"""The look for numbers that are not finite, as cheap as it can be made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_finite(numbers: NDArray[Any]) -> bool:
    """Return whether all of ``[k]`` contiguous floats are finite.

    A dot product reads memory as fast as it comes and makes neither a mask nor a copy. That of
    large numbers may overflow, so only its refusal is looked into.
    """
    return math.isfinite(numbers.dot(numbers)) or bool(np.isfinite(numbers).all())


def first_not_finite(numbers: NDArray[Any]) -> tuple[int, ...]:
    """Return the index of the first element of any array that is not finite."""
    flat = int(np.flatnonzero(~np.isfinite(numbers).ravel())[0])
    return tuple(int(index) for index in np.unravel_index(flat, numbers.shape))
