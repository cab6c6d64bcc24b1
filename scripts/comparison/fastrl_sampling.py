"""fastrl's own sampler as a method."""

from __future__ import annotations

import time
from dataclasses import asdict

from comparison.task import Task
from fastrl.sampling.build import make_sampler
from fastrl.sampling.process_sampler import ProcessSampler
from fastrl.sampling.serial_sampler import SerialSampler
from fastrl.spec import Topology


class FastrlSampling:
    """fastrl's sampler, collected from as fast as it fills.

    Args:
        name: See `Method`.
        label: See `Method`.
        task: What is sampled.
        topology: n, N, M and groups.
    """

    def __init__(self, name: str, label: str, task: Task, topology: Topology) -> None:
        self.name, self.label = name, label
        self._sampler: ProcessSampler | SerialSampler | None = None
        self.settings = asdict(topology)
        sampler = task.config.sampler.model_copy(update=self.settings)
        self._config = task.config.model_copy(update={"sampler": sampler})

    def start(self) -> None:
        """Start the workers and wait for the first rollout."""
        self._sampler = sampler = make_sampler(self._config)
        sampler.start()
        sampler.collect()

    def run(self, seconds: float) -> int:
        """Collect whole rollouts for at least ``seconds``; see `Method.run`."""
        sampler, end = self._running(), time.perf_counter() + seconds
        before = sampler.stats().frames
        while time.perf_counter() < end:
            sampler.collect()
        return sampler.stats().frames - before

    def rest(self) -> None:
        """Wait until every worker says that it waits."""
        self._running().pause()

    def close(self) -> None:
        """End the workers."""
        sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.close()

    def _running(self) -> ProcessSampler | SerialSampler:
        assert self._sampler is not None
        return self._sampler
