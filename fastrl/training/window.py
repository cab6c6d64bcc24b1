"""What happened since the last row of metrics, added up."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastrl.shared.rollout_buffer import Episodes
from fastrl.training.episode_info import EpisodeInfo, Totals

_EPISODES = 100
"""Episodes over which returns and lengths are averaged."""


@dataclass(frozen=True)
class Update:
    """One pass of the training loop.

    Attributes:
        steps: Environment steps learnt from so far.
        updates: Rollouts learnt from so far.
        num_steps: Environment steps of this rollout.
        episodes: The episodes that ended in it.
        metrics: What the learner said about it.
        policy_lag: By how many updates the policy that sampled was older than the one that
            learnt, mean over the rollout.
        sampling_s: Time in which this process waited for the rollout.
        learning_s: Time of the update, and of handing its weights to the sampler.
    """

    steps: int
    updates: int
    num_steps: int
    episodes: Episodes
    metrics: Mapping[str, float]
    policy_lag: float
    sampling_s: float
    learning_s: float


class Window:
    """Adds up updates and gives one row of metrics for all of them.

    Attributes:
        steps: Environment steps in the window.
        episodes: Episodes that have ended in the whole run.
        info: What they told of themselves.

    Args:
        wall_s: Time of the run before now.
        episodes: Episodes before now.
        info: What they told of themselves.
        latest: What `latest` returned before now.
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
        self._returns = deque((each for each, _ in latest), maxlen=_EPISODES)
        self._lengths = deque((each for _, each in latest), maxlen=_EPISODES)
        self._began_s = self._opened_s = time.perf_counter()
        self._clear()

    @property
    def wall_s(self) -> float:
        """Time of the run so far, without that between two sessions of it."""
        return self._earlier_s + time.perf_counter() - self._began_s

    @property
    def latest(self) -> list[tuple[float, int]]:
        """Returns and lengths of the episodes that are averaged over."""
        return list(zip(self._returns, self._lengths, strict=True))

    @property
    def open_s(self) -> float:
        """Time since the last row."""
        return time.perf_counter() - self._opened_s

    def add(self, update: Update) -> None:
        """Count an update in."""
        self._last = update
        self._updates += 1
        self.steps += update.num_steps
        self._sampling_s += update.sampling_s
        self._learning_s += update.learning_s
        self._lag += update.policy_lag
        for name, value in update.metrics.items():
            self.log(name, value)
        if len(update.episodes):
            self.episodes += len(update.episodes)
            self.info.add(update.episodes)
            self._returns.extend(update.episodes.returns.tolist())
            self._lengths.extend(update.episodes.lengths.tolist())

    def log(self, name: str, value: float) -> None:
        """Add a number to the row, which has the mean of all numbers of a name."""
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + value, count + 1

    def row(self, idle_s: float | None = None) -> dict[str, float | int]:
        """Return the metrics of the window, and open the next one. It must not be empty.

        ``return_mean`` and ``length_mean`` are those of the last 100 episodes, and NaN before the
        first; each number that the learner reports is averaged over the updates that reported it.
        ``sampling_fps`` is the speed while the sampler sampled, ``learning_fps`` that while the
        learner learnt, ``fps`` the speed from end to end, all in environment steps per second. The
        shares are of this process's time: waiting for rollouts, and learning.

        Args:
            idle_s: How long the sampler did not sample; None if it does so only while this
                process waits for it.
        """
        open_s = self.open_s
        sampled_s = self._sampling_s if idle_s is None else open_s - idle_s
        row: dict[str, float | int] = {
            "steps": self._last.steps,
            "updates": self._last.updates,
            "episodes": self.episodes,
            "wall_s": self.wall_s,
            "return_mean": _mean(self._returns),
            "length_mean": _mean(self._lengths),
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


def _mean(values: deque[float] | deque[int]) -> float:
    return sum(values) / len(values) if values else math.nan
