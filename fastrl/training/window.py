"""Sums and means of what happens between two rows of metrics."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastrl.shared.rollouts import Episodes

_EPISODES = 100
"""Number of episodes over which returns, lengths and episode infos are averaged."""
_ACHIEVEMENT = "achievements/"

Totals = Mapping[str, Sequence[int]]
"""By name: the number of episodes that reported the value, and of those with a positive value."""


@dataclass(frozen=True)
class Update:
    """The result of one pass of the training loop.

    Attributes:
        steps: Number of environment steps learnt from so far.
        updates: Number of rollouts learnt from so far.
        num_steps: Number of environment steps of this rollout.
        episodes: The episodes that ended in it.
        metrics: Metrics of the learner.
        policy_lag: Age of the policy that sampled, in updates of the learner; mean over the
            rollout.
        sampling_s: Time in which this process waited for the rollout.
        learning_s: Time of the update, including the transfer of its weights to the sampler.
    """

    steps: int
    updates: int
    num_steps: int
    episodes: Episodes
    metrics: Mapping[str, float]
    policy_lag: float
    sampling_s: float
    learning_s: float


class EpisodeInfo:
    """Counts and averages the values that environments report of episodes (`Episodes.info`).

    Args:
        totals: Totals of earlier episodes.
    """

    def __init__(self, totals: Totals | None = None) -> None:
        self._totals = {name: list(counts) for name, counts in (totals or {}).items()}
        self._recent: dict[str, deque[float]] = {}

    @property
    def totals(self) -> dict[str, list[int]]:
        """The state from which a later session starts."""
        return {name: list(counts) for name, counts in self._totals.items()}

    def add(self, episodes: Episodes) -> None:
        """Add episodes; values that an episode did not report are NaN."""
        for name, values in episodes.info.items():
            reported = values[~np.isnan(values)]
            counts = self._totals.setdefault(name, [0, 0])
            counts[0] += len(reported)
            counts[1] += int(np.count_nonzero(reported > 0))
            self._recent.setdefault(name, deque(maxlen=_EPISODES)).extend(reported.tolist())

    def row(self) -> dict[str, float]:
        """Return the mean of each value over the last 100 episodes, and the score so far."""
        means = {f"info/{name}": _mean(values) for name, values in self._recent.items()}
        score = self.achievement_score()
        return means if score is None else {**means, "achievement_score": score}

    def shares(self) -> dict[str, float]:
        """Return the share of all episodes in which each value was positive."""
        return {name: positive / count for name, (count, positive) in self._totals.items() if count}

    def achievement_score(self) -> float | None:
        """Return the score of the achievements, in percent; None if there are none.

        It is the geometric mean of one plus the success rates in percent, minus one, over all
        episodes of training: exp(mean(ln(1 + s))) - 1 (Hafner 2021, "Benchmarking the Spectrum of
        Agent Capabilities", equation 1).
        """
        rates = [100 * x for name, x in self.shares().items() if name.startswith(_ACHIEVEMENT)]
        if not rates:
            return None
        return math.expm1(sum(map(math.log1p, rates)) / len(rates))


class Window:
    """Sums up updates and returns one row of metrics for all of them.

    Attributes:
        steps: Number of environment steps in the window.
        episodes: Number of episodes that have ended in the whole run.
        info: Values that environments reported of them.

    Args:
        wall_s: Earlier time of the run.
        episodes: Number of earlier episodes.
        info: Values that environments reported of earlier episodes.
        latest: Earlier result of `latest`.
    """

    def __init__(
        self,
        wall_s: float = 0.0,
        episodes: int = 0,
        info: Totals | None = None,
        latest: Sequence[tuple[float, int]] = (),
    ) -> None:
        self.episodes, self.info = episodes, EpisodeInfo(info)
        self._earlier_s = wall_s
        self._latest = deque(latest, maxlen=_EPISODES)
        self._began_s = self._opened_s = time.perf_counter()
        self._clear()

    @property
    def wall_s(self) -> float:
        """Time of the run so far, without pauses between sessions."""
        return self._earlier_s + time.perf_counter() - self._began_s

    @property
    def latest(self) -> list[tuple[float, int]]:
        """Returns and lengths of the episodes of the averages."""
        return list(self._latest)

    @property
    def open_s(self) -> float:
        """Time since the last row."""
        return time.perf_counter() - self._opened_s

    def add(self, update: Update) -> None:
        """Add an update."""
        self._last = update
        self._updates += 1
        self.steps += update.num_steps
        self._sampling_s += update.sampling_s
        self._learning_s += update.learning_s
        self._lag += update.policy_lag
        for name, value in update.metrics.items():
            self.log(name, value)
        episodes = update.episodes
        if len(episodes):
            self.episodes += len(episodes)
            self.info.add(episodes)
            self._latest.extend(
                zip(episodes.returns.tolist(), episodes.lengths.tolist(), strict=True)
            )

    def log(self, name: str, value: float) -> None:
        """Add a value to the row, which has the mean of all values of a name."""
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + value, count + 1

    def row(self, idle_s: float | None = None) -> dict[str, float | int]:
        """Return the metrics of the window, which must not be empty, and open the next one.

        ``return_mean`` and ``length_mean`` are those of the last 100 episodes, and NaN before the
        first; each value that the learner reports is averaged over the updates that reported it.
        ``sampling_fps`` is the speed while the sampler samples, ``learning_fps`` that while the
        learner learns, ``fps`` the speed from end to end, all in environment steps per second. The
        shares are of this process's time: waiting for rollouts, and learning.

        Args:
            idle_s: Time in which the sampler did not sample; None if it samples only while this
                process waits for it.
        """
        open_s = self.open_s
        sampled_s = self._sampling_s if idle_s is None else open_s - idle_s
        row: dict[str, float | int] = {
            "steps": self._last.steps,
            "updates": self._last.updates,
            "episodes": self.episodes,
            "wall_s": self.wall_s,
            "return_mean": _mean(value for value, _ in self._latest),
            "length_mean": _mean(length for _, length in self._latest),
            "fps": self.steps / open_s,
            "sampling_fps": self.steps / max(sampled_s, 1e-9),
            "learning_fps": self.steps / max(self._learning_s, 1e-9),
            "sampling_share": self._sampling_s / open_s,
            "learning_share": self._learning_s / open_s,
            "policy_lag": self._lag / self._updates,
        }
        row.update({name: total / count for name, (total, count) in self._sums.items()})
        row.update(self.info.row())
        self._opened_s += open_s
        self._clear()
        return row

    def _clear(self) -> None:
        self.steps = self._updates = 0
        self._sampling_s = self._learning_s = self._lag = 0.0
        self._sums: dict[str, tuple[float, int]] = {}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan
