"""What rewards and observations of several robots are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Range = tuple[float, float]


def control_cost(weight: float, action: NDArray[Any]) -> NDArray[Any]:
    """Return the weighted sum of squares of each row, ``[n]``, in the action's own dtype.

    Gymnasium squares and adds float32 actions in float32, which shows in the eighth digit.
    """
    squares: NDArray[Any] = np.square(action).sum(1)
    return weight * squares


def inside(values: NDArray[Any], bounds: Range) -> NDArray[np.bool_]:
    """Return where values lie strictly between two bounds."""
    low, high = bounds
    return (low < values) & (values < high)


def flat(field: NDArray[Any], first: int = 0) -> NDArray[Any]:
    """Return ``[n, bodies * k]`` of ``[n, bodies, k]`` from body ``first`` on; a view."""
    return field.reshape(len(field), -1)[:, first * field.shape[2] :]
