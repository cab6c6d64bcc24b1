"""What resets cost, which short windows do not show.

Environments that have just been started are young, so a window of them holds fewer ends of
episodes than training will see, and the more environments the fewer: each makes less steps in it.
Where a reset takes as long as two hundred steps, many environments would look twice as fast as they
are. So how often episodes end, and what that takes, is learnt once from few environments that live
long, and every window is brought to that rate.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastrl.sampling.stats import SamplerStats

ENDS_PER_ENV = 2
"""Episodes after which environments do not end together any more, roughly."""


@dataclass(frozen=True)
class Resets:
    """How often episodes end and what an end costs.

    Attributes:
        per_step: Ends per environment step.
        seconds: What one takes longer than any other step.
    """

    per_step: float = 0.0
    seconds: float = 0.0

    @classmethod
    def seen(
        cls, spent: SamplerStats, envs_per_group: int, time_limit: int | None = None
    ) -> Resets:
        """Return what env workers have counted.

        Args:
            spent: What was done.
            envs_per_group: Environments that make one step together.
            time_limit: Steps after which episodes end at the latest.
        """
        steps, episodes = float(spent.frames), float(spent.episodes.sum())
        group_steps, ending = steps / envs_per_group, float(spent.ending_steps.sum())
        at_least = 1 / time_limit if time_limit else 0.0
        if not episodes or ending >= group_steps:
            return cls(at_least)
        ending_ns = float(spent.ending_steps_ns.sum())
        usual_ns = (float(spent.stepping_ns.sum()) - ending_ns) / (group_steps - ending)
        extra_ns = ending_ns - ending * usual_ns
        return cls(max(episodes / steps, at_least), max(0.0, extra_ns / episodes / 1e9))

    def usual_s(
        self, spent_s: float, spent: SamplerStats, in_parallel: int, idle_s: float = 0.0
    ) -> float:
        """Return how long a window would have taken with as many resets as usual.

        Args:
            spent_s: How long it took.
            spent: What was done in it.
            in_parallel: Environments that can be reset at the same time.
            idle_s: Time of cores in which they had nothing to do and could have reset instead.
        """
        missing = self.per_step * float(spent.frames) - float(spent.episodes.sum())
        more_s = missing * self.seconds / in_parallel
        if more_s > 0:
            more_s = max(0.0, more_s - idle_s / in_parallel)
        # Not all of a window can be resets: what was not seen well must not turn it around.
        return max(spent_s / 4, spent_s + more_s)
