"""A race of a candidate against the incumbent: short windows first, longer ones if it is close."""

from __future__ import annotations

import math
from enum import Enum

_WINDOWS = (1.0, 1.0, 2.0, 2.0)
"""Lengths of the windows of a race, as multiples of the first."""
_PRIOR_STD = 0.04
"""Standard deviation of the log ratio of two adjacent windows of `_PRIOR_WINDOW_S`, roughly."""
_PRIOR_WINDOW_S = 0.4
_PRIOR_WEIGHT = 4.0
_SURE = 2.0
"""Standard errors by which a candidate must lead to win before its last window."""
_SURE_AT_LAST = 1.5
_PROMISING = 0.5
"""Standard errors by which it must lead after its second window, to go on."""
_WORTH_IT = 0.005
"""Lead in log speed that is worth a change."""
_FAR_BEHIND = 0.25
"""Loss in log speed at one look that no usual noise explains."""


class Verdict(Enum):
    """How a race stands."""

    OPEN = "open"
    WON = "won"
    LOST = "lost"


class Noise:
    """Variance of log ratios times the seconds of their windows, pooled over all races."""

    def __init__(self) -> None:
        self._sum = _PRIOR_WEIGHT * _PRIOR_STD**2 * _PRIOR_WINDOW_S
        self._weight = _PRIOR_WEIGHT

    @property
    def variance_seconds(self) -> float:
        """Variance of the log ratio of two windows of one second."""
        return self._sum / self._weight

    def add(self, deviation: float, seconds: float) -> None:
        """Take account of how far two ratios of the same race are apart.

        Args:
            deviation: Their difference.
            seconds: Harmonic sum of the windows' lengths.
        """
        # One jump of the machine in the middle of a race says little about the others.
        square = min(deviation**2 * seconds, 9 * self.variance_seconds)
        self._sum += square
        self._weight += 1.0


class Race:
    """Log ratios of a candidate to the incumbent.

    Args:
        noise: Of all races.
        window_s: Length of the first windows.
    """

    def __init__(self, noise: Noise, window_s: float) -> None:
        self._noise, self._window_s = noise, window_s
        self._sum = self._seconds = 0.0
        self._count = 0
        self.verdict = Verdict.OPEN

    @property
    def next_window_s(self) -> float:
        """Length of the windows to measure next."""
        return self._window_s * _WINDOWS[self._count]

    @property
    def lead(self) -> float:
        """Mean log ratio so far, weighted by time."""
        return self._sum / self._seconds

    @property
    def variance(self) -> float:
        """Of `lead`."""
        return self._noise.variance_seconds / self._seconds

    def add(self, log_ratio: float, seconds: float) -> None:
        """Take account of two more windows."""
        if self._count:
            apart = 1 / (1 / self._seconds + 1 / seconds)
            self._noise.add(log_ratio - self.lead, apart)
        self._sum += log_ratio * seconds
        self._seconds += seconds
        self._count += 1
        self.verdict = self._judge(math.sqrt(self.variance))

    def _judge(self, error: float) -> Verdict:
        if self._count == 1:
            behind = self.lead < -_FAR_BEHIND or self.lead + 2 * error < 0
            return Verdict.LOST if behind else Verdict.OPEN
        if self.lead - _SURE * error > 0:
            return Verdict.WON
        last = self._count == len(_WINDOWS)
        if self.lead < max(_WORTH_IT, (_SURE_AT_LAST if last else _PROMISING) * error):
            return Verdict.LOST
        return Verdict.WON if last else Verdict.OPEN
