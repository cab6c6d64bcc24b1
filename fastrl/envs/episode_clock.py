"""Counts the steps of episodes against their time limits."""

from __future__ import annotations

from collections.abc import Sequence

NEVER = 2**62
"""The limit of an environment without one."""


class EpisodeClock:
    """Counts steps of some environments against their time limits.

    A step of all of them costs one addition and one comparison until the first episode is due; an
    array of counters would cost as much as a cheap environment.

    Args:
        limits: Steps after which each environment's episode is truncated; None for no limit.

    Attributes:
        now: Steps of all environments; a caller that steps them all adds one.
        next_due: No episode is due before ``now`` is this.
    """

    def __init__(self, limits: Sequence[int | None]) -> None:
        self.now, self.next_due = 0, 0
        self._begun = [0] * len(limits)
        self.limit(limits)

    def limit(self, limits: Sequence[int | None]) -> None:
        """Set new limits for all environments."""
        self._limits = [NEVER if limit is None else limit for limit in limits]
        self._settle()

    def restart(self, index: int) -> None:
        """Begin an environment's episode."""
        self._begun[index] = self.now
        # A bound that is too early costs one check. Limits may differ, so this one may be earlier.
        self.next_due = min(self.next_due, self.now + self._limits[index])

    def elapsed(self, index: int) -> int:
        """Return how many steps an environment's episode has had."""
        return self.now - self._begun[index]

    def advance_one(self, index: int) -> None:
        """Count a step of one environment."""
        self._begun[index] -= 1
        self.next_due = min(self.next_due, self._begun[index] + self._limits[index])

    def resume(self, elapsed: Sequence[int]) -> None:
        """Continue episodes that have had these numbers of steps."""
        self._begun = [self.now - int(steps) for steps in elapsed]
        self._settle()

    def due(self) -> Sequence[int]:
        """Return the environments whose episodes have had all their steps."""
        if self.now < self.next_due:
            return ()
        self._settle()
        return [index for index in range(len(self._limits)) if self.is_due(index)]

    def is_due(self, index: int) -> bool:
        """Return whether an environment's episode has had all its steps."""
        return self.elapsed(index) >= self._limits[index]

    def _settle(self) -> None:
        """Compute when the next episode is due."""
        ends = (begun + limit for begun, limit in zip(self._begun, self._limits, strict=True))
        self.next_due = min(ends, default=self.now + 1)
