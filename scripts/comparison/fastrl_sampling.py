"""fastrl's own sampler as a method."""

from __future__ import annotations

import time

from comparison.method import Method
from comparison.task import Task
from fastrl.sampling import Sampler
from fastrl.sampling.build import make_sampler
from fastrl.spec import Topology


class FastrlSampling(Method):
    """fastrl's sampler, whose rollouts are collected as fast as they fill."""

    _sampler: Sampler

    def __init__(self, name: str, label: str, task: Task, topology: Topology) -> None:
        self.name, self.label, self.settings = name, label, topology.sizes
        sampler = task.config.sampler.model_copy(update=topology.sizes)
        self._config = task.config.model_copy(update={"sampler": sampler})

    def start(self) -> None:
        """Start the workers and wait for the first rollout."""
        self._sampler = make_sampler(self._config)
        self._sampler.start()
        self._sampler.collect()

    def run(self, seconds: float) -> int:
        """Collect whole rollouts for at least ``seconds``; see `Method.run`."""
        before, end = self._sampler.stats().frames, time.perf_counter() + seconds
        while time.perf_counter() < end:
            self._sampler.collect()
        return self._sampler.stats().frames - before

    def rest(self) -> None:
        """Wait until every worker has reported that it waits."""
        self._sampler.pause()

    def close(self) -> None:
        """End the workers."""
        if hasattr(self, "_sampler"):
            self._sampler.close()
