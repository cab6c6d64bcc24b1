"""How light it is at each step of an episode."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DAY = 300


class Daylight:
    """Light by step, computed as far as it is needed; https://www.desmos.com/calculator/grfbc6rs3h.

    Each value is computed by the original's expression on NumPy scalars: a compiled cosine may
    differ in the last bit, and pixels are cut off, not rounded, so that one bit can show.

    Attributes:
        table: ``[k] float64``, between 0 and 1.
    """

    def __init__(self) -> None:
        """Compute the first steps."""
        self.table: NDArray[np.float64] = np.zeros(0)
        self.extend(1000)

    def extend(self, steps: int) -> None:
        """Make the table hold step ``steps``, and as many again."""
        first = len(self.table)
        more = [_light(step) for step in range(first, max(2 * steps, first))]
        self.table = np.concatenate([self.table, np.array(more, np.float64)])


def _light(step: int) -> float:
    progress = (step / _DAY) % 1 + 0.3
    return float(1 - np.abs(np.cos(np.pi * progress)) ** 3)
