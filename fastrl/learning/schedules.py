"""Schedules: numbers of an algorithm that change during a run.

The shapes are pure functions of progress: 0 at the start, 1 at ``total_steps`` and more beyond.
They return a factor for the configured number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fastrl.arguments import finite_number, one_of
from fastrl.config import Config, PPOConfig
from fastrl.config.algorithms import LearnerConfig

SCHEDULED = {
    "learning_rate": "learning_rate_schedule",
    "entropy_coef": "entropy_schedule",
    "clip_range": "clip_schedule",
}
"""Scheduled numbers, and the keys of their schedules."""

_KL_FACTOR = 1.5
"""Factor by which a KL-adaptive learning rate changes after an update."""
_KL_MARGIN = 2.0
"""Factor by which a KL divergence may differ from its target before the rate changes."""


def constant(progress: float) -> float:
    """Return 1."""
    return 1.0


def linear(progress: float) -> float:
    """Return 1 - progress, and 0 beyond the end."""
    return max(0.0, 1 - progress)


def cosine(progress: float) -> float:
    """Return half a period of a cosine, from 1 to 0, and 0 beyond the end.

    Loshchilov and Hutter 2017 (https://arxiv.org/abs/1608.03983), equation 5, without restarts.
    """
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


SHAPES: Mapping[str, Callable[[float], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
}
"""Schedules by their name in the configuration."""


class Schedules:
    """The scheduled numbers of a run's algorithm.

    All but a KL-adaptive learning rate are functions only of the steps learnt from and of
    ``total_steps``. A KL-adaptive one (Rudin et al. 2021, https://arxiv.org/abs/2109.11978)
    is divided by 1.5 after an update that moved the policy by more than twice
    ``target_kl``, multiplied by 1.5 after one that moved it by less than half of that, and stays
    within ``learning_rate_bounds``.

    Attributes:
        rollout_steps: Environment steps of a rollout, over all ranks; the learner sets it to
            that of its latest rollout.

    Args:
        config: The whole run; ``total_steps`` and the size of a rollout are used.
        section: Section of the algorithm; by default ``config.algorithm``.
        names: Scheduled numbers of the section, and the keys of their schedules.
    """

    def __init__(
        self,
        config: Config,
        section: LearnerConfig | None = None,
        names: Mapping[str, str] = SCHEDULED,
    ) -> None:
        self._algorithm = config.algorithm if section is None else section
        self._names, self._total_steps = names, config.total_steps
        self.rollout_steps = config.sampler.rollout_length * config.topology.num_envs
        warmup = self._algorithm.learning_rate_warmup
        self._warmup_steps = warmup * config.total_steps if warmup < 1 else warmup
        self._kl_exponent = 0
        self._overrides: dict[str, float] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The scheduled numbers."""
        return tuple(self._names)

    def override(self, name: str, value: float | None) -> None:
        """Fix a scheduled number from the next update on; None restores its schedule.

        Raises:
            ConfigError: There is no such number, or the value is negative or not finite.
        """
        one_of("set_schedule: name", name, self.names)
        if value is None:
            self._overrides.pop(name, None)
        else:
            self._overrides[name] = float(finite_number(f"set_schedule: {name}", value, at_least=0))

    def at(self, name: str, steps: int) -> float:
        """Return a scheduled number for the update after ``steps`` environment steps.

        The first update of a warm-up uses the rate at the end of its rollout, as the rate at the
        start is 0.
        """
        if name in self._overrides:
            return self._overrides[name]
        value = float(getattr(self._algorithm, name))
        schedule = getattr(self._algorithm, self._names[name])
        if schedule == "kl_adaptive":
            return self._kl_adaptive_rate()
        warmup = self._warmup_steps if name == "learning_rate" else 0
        if steps < warmup:
            return value * min(1.0, (steps + self.rollout_steps) / warmup)
        left = max(1, self._total_steps - warmup)
        return value * SHAPES[schedule]((steps - warmup) / left)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Adapt to the metrics of an update.

        The KL divergence of a minibatch is measured before its gradient step, so an update of a
        single one is ignored.
        """
        algorithm = self._algorithm
        if not (isinstance(algorithm, PPOConfig) and algorithm.is_kl_adaptive):
            return
        if metrics["gradient_steps"] < 2:
            return
        assert algorithm.target_kl is not None
        kl, rate = metrics["approx_kl"], self._kl_adaptive_rate()
        low, high = algorithm.learning_rate_bounds
        if kl > algorithm.target_kl * _KL_MARGIN and rate > low:
            self._kl_exponent -= 1
        elif 0 < kl < algorithm.target_kl / _KL_MARGIN and rate < high:
            self._kl_exponent += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state that does not depend on the number of steps alone."""
        return {"kl_exponent": self._kl_exponent, "overrides": dict(self._overrides)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state; an empty one is the initial state."""
        self._kl_exponent = state.get("kl_exponent", 0)
        self._overrides = dict(state.get("overrides", {}))

    def _kl_adaptive_rate(self) -> float:
        assert isinstance(self._algorithm, PPOConfig)
        low, high = self._algorithm.learning_rate_bounds
        rate = self._algorithm.learning_rate * _KL_FACTOR**self._kl_exponent
        return min(high, max(low, rate))
