"""Measures candidates on this machine, and keeps two of them running so that they can take turns.

Whoever is not being measured rests: its workers wait without using a core.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal

from fastrl.closing import Closing
from fastrl.config import Config
from fastrl.cores import usable_cores
from fastrl.errors import FastrlError
from fastrl.learning import build_learner
from fastrl.sampling.build import make_plan, make_sampler
from fastrl.sampling.faults import Fault
from fastrl.sampling.process_sampler import ProcessSampler
from fastrl.sampling.stats import SamplerStats
from fastrl.tuning.apply import with_candidate
from fastrl.tuning.candidate import Candidate
from fastrl.tuning.memory import unique_bytes
from fastrl.tuning.resets import ENDS_PER_ENV, Resets
from fastrl.tuning.trials import Sample, TrialError
from fastrl.workers.plan import SamplingPlan

Objective = Literal["fps", "train_fps"]

_LOGGER = logging.getLogger(__name__)
_RUNNING = 2
_SETTLE_S = 0.05
"""Sampled before a window: caches fill, and whatever waited has gone on."""
_ROLLOUT_S = 0.05
"""How long a rollout may take; others are cut shorter, or short windows would hold none."""
_SHORTEST_ROLLOUT = 4
_CALIBRATION_S = 4.0
"""Longest time in which it is seen what resets cost."""


def with_few_envs(c: Candidate) -> Candidate:
    """Return a candidate like it with at most 8 environments per worker, or one per group."""
    few = min(8, c.envs_per_worker)
    return c.but(envs_per_worker=few // c.groups * c.groups or c.groups)


@dataclass(frozen=True)
class Limits:
    """How long a candidate may take.

    Attributes:
        start_s: Until its first rollout is complete.
        window_s: For a window, beside that.
    """

    start_s: float
    window_s: float


class Rig(ABC):
    """One candidate, running or at rest.

    Attributes:
        start_s: From starting it to its first rollout.

    Args:
        config: Of a run as the candidate says.
        plan: What it samples.
        limits: How long it may take.
        resets: What resets cost.
    """

    start_s: float = 0.0

    def __init__(self, config: Config, plan: SamplingPlan, limits: Limits, resets: Resets) -> None:
        self._limits, self._resets, self._topology = limits, resets, plan.topology
        self._asynchronous, self._late = config.sampler.mode == "async", threading.Event()
        sampler = make_sampler(config, plan, on_fault=self._on_fault)
        assert isinstance(sampler, ProcessSampler), "only sampler.kind: process is tuned"
        self._sampler = sampler

    def start(self) -> None:
        """Sample until the first rollout is complete."""
        began_s = time.perf_counter()
        with self._limited(self._limits.start_s):
            self._sampler.start()
            self._go()
        self.start_s = time.perf_counter() - began_s

    def window(self, seconds: float) -> Sample:
        """Sample for so long, and rest."""
        with self._limited(self._limits.window_s):
            first = self._after(_SETTLE_S)
            last = self._after(seconds)
            self._sampler.pause(self._limits.window_s)
        steps, spent_s = last[1] - first[1], last[0] - first[0]
        spent, learnt_s = last[2] - first[2], last[3] - first[3]
        in_parallel = min(self._topology.num_env_workers, usable_cores())
        idle_s = self._idle_s(spent_s, spent, learnt_s)
        usual_s = self._resets.usual_s(spent_s, spent, in_parallel, idle_s)
        notes = {
            "seen_fps": steps / spent_s,
            "start_s": self.start_s,
            "shares": spent.by_kind().time_shares,
            "learner_share": learnt_s / spent_s,
        }
        return Sample(steps / usual_s, notes)

    def watch_resets(self, seconds: float, time_limit: int | None) -> Resets:
        """Sample until most episodes have ended a few times, at most so long.

        Args:
            seconds: How long.
            time_limit: Steps after which episodes end at the latest.
        """
        stats, enough = self._sampler.stats, ENDS_PER_ENV * self._topology.num_envs
        with self._limited(self._limits.window_s):
            first, until_s = stats(), time.perf_counter() + seconds
            spent = stats() - first
            while time.perf_counter() < until_s and spent.episodes.sum() < enough:
                self._go()
                spent = stats() - first
        return Resets.seen(spent, self._topology.envs_per_group, time_limit)

    def pids(self) -> list[int]:
        """Return the process ids of its workers."""
        return list(self._sampler.pids().values())

    def unique_bytes(self) -> int:
        """Return the memory that a worker holds alone."""
        return unique_bytes(self._sampler.stats(details=True).memory)

    def close(self) -> None:
        """End it."""
        self._sampler.close()

    @abstractmethod
    def _go(self) -> None:
        """Take the next rollout, and do with it what is done."""

    @abstractmethod
    def _steps(self, stats: SamplerStats) -> int:
        """Return the environment steps that count."""

    def _learning_s(self) -> float:
        return 0.0

    def _after(self, seconds: float) -> tuple[float, int, SamplerStats, float]:
        """Go on for so long; return the time, the steps, what was done, the time of learning."""
        until_s = time.perf_counter() + seconds
        self._go()
        while time.perf_counter() < until_s:
            self._go()
        stats = self._sampler.stats()
        return time.perf_counter(), self._steps(stats), stats, self._learning_s()

    def _idle_s(self, spent_s: float, spent: SamplerStats, learnt_s: float) -> float:
        """Return the time in which cores had nothing to do, though env workers might have.

        A worker that had to give its core away counts as busy, so it is rather too little.
        """
        if not self._asynchronous:
            return 0.0
        busy_ns = spent.stepping_ns + spent.inference_ns + spent.hand_over_ns
        busy_s = float(busy_ns.sum()) / 1e9 + learnt_s
        return max(0.0, usable_cores() * spent_s - busy_s)

    def _on_fault(self, fault: Fault) -> None:
        """Let a worker be replaced, as in a run, unless `_limited` has ended it."""
        if self._late.is_set():
            raise TrialError(fault.cause)
        _LOGGER.warning("%s", fault)

    @contextmanager
    def _limited(self, limit_s: float) -> Iterator[None]:
        """End the workers, and with them whatever waits for them, when it takes too long.

        Raises:
            TrialError: It took too long.
        """
        self._late.clear()

        def give_up() -> None:
            self._late.set()
            for pid in self.pids():
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(limit_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        except FastrlError as error:
            if self._late.is_set():
                told = f"took longer than {limit_s:.0f} s"
                window_s = self._limits.window_s
                raise TrialError(told, exhausted=True, limit_s=window_s) from error
            raise
        finally:
            timer.cancel()


class SamplingRig(Rig):
    """Samples without a learner, as fast as it can."""

    def _go(self) -> None:
        self._sampler.collect()

    def _steps(self, stats: SamplerStats) -> int:
        return stats.frames


class TrainingRig(Rig):
    """Samples and learns, as training does."""

    def __init__(self, config: Config, plan: SamplingPlan, limits: Limits, resets: Resets) -> None:
        # Schedules must not end while it is measured. Before the sampler, which holds memory.
        self._learner = build_learner(
            config.model_copy(update={"total_steps": 2**60}), plan.env_spec
        )
        super().__init__(config, plan, limits, resets)
        self._learnt_s = 0.0

    def _go(self) -> None:
        rollout = self._sampler.collect()
        began_s = time.perf_counter()
        self._learner.update(rollout)
        self._sampler.publish(self._learner.weights())
        self._learnt_s += time.perf_counter() - began_s

    def _steps(self, stats: SamplerStats) -> int:
        return self._learner.steps

    def _learning_s(self) -> float:
        return self._learnt_s


class Workbench(Closing):
    """Measures candidates for one configuration; a `Measure`. Use it in a ``with`` block.

    Args:
        config: The run; what a candidate says replaces what it says.
        objective: ``fps`` samples only; ``train_fps`` learns from it, too.
        limit_s: Longest time for a window.
        start_limit_s: Longest time for starting a candidate, ``limit_s`` by default. Where it is
            given, all until one has been measured have ``sampler.start_timeout_s`` if that is more.
    """

    def __init__(
        self,
        config: Config,
        objective: Objective = "fps",
        limit_s: float = 20.0,
        start_limit_s: float | None = None,
    ) -> None:
        self._config, self._objective = config, objective
        self._limits = Limits(limit_s if start_limit_s is None else start_limit_s, limit_s)
        self._first_start_s = self._limits.start_s
        if start_limit_s is not None:
            self._first_start_s = max(start_limit_s, config.sampler.start_timeout_s)
        self._has_measured = False
        self._rigs: dict[Candidate, Rig] = {}
        self._fps, self._resets = 0.0, Resets()
        self.plan = make_plan(config)

    def __call__(self, candidate: Candidate, seconds: float) -> Sample:
        """Return a window of a candidate; others rest meanwhile.

        Raises:
            FastrlError: It cannot be built, crashed, or needs too much memory or time.
        """
        rig = self._rigs.pop(candidate, None)
        try:
            if rig is None:
                self._make_room()
                rig = self._started(candidate)
            sample = rig.window(seconds)
        except BaseException:
            if rig is not None:
                rig.close()
            raise
        self._rigs[candidate], self._has_measured = rig, True
        self._fps = max(self._fps, sample.fps)
        return sample

    def calibrate(self, candidate: Candidate) -> int:
        """Learn roughly how fast sampling is, and what resets cost.

        The speed decides how long rollouts of trials may be; see `fastrl.tuning.resets`.

        Args:
            candidate: What to start, but `with_few_envs`.

        Returns:
            Bytes that a worker of it holds alone.
        """
        rig = self._started(with_few_envs(candidate), rollout_length=_SHORTEST_ROLLOUT)
        try:
            self._fps = rig.window(_SETTLE_S).fps
            seconds = min(_CALIBRATION_S, self._limits.window_s / 4)
            self._resets = rig.watch_resets(seconds, self.plan.env_spec.max_episode_steps)
            return rig.unique_bytes()
        finally:
            rig.close()

    def pids(self) -> list[int]:
        """Return the process ids of all workers of the candidates that are kept."""
        return [pid for rig in self._rigs.values() for pid in rig.pids()]

    def close(self) -> None:
        """End all processes."""
        while self._rigs:
            self._rigs.popitem()[1].close()

    def _make_room(self) -> None:
        while len(self._rigs) >= _RUNNING:
            oldest = next(iter(self._rigs))
            self._rigs.pop(oldest).close()

    def _started(self, candidate: Candidate, rollout_length: int | None = None) -> Rig:
        config = with_candidate(self._config, candidate)
        plan = make_plan(config, env_spec=self.plan.env_spec)
        limits = self._limits
        if not self._has_measured:
            limits = replace(limits, start_s=self._first_start_s)
        rig: Rig
        if self._objective == "train_fps":
            rig = TrainingRig(config, plan, limits, self._resets)
        else:
            length = rollout_length or self._trial_length(candidate, plan.rollout_length)
            plan = replace(plan, rollout_length=length)
            sampler = config.sampler.model_copy(update={"mode": "async"})
            config = config.model_copy(update={"sampler": sampler})
            rig = SamplingRig(config, plan, limits, self._resets)
        try:
            rig.start()
        except BaseException:
            rig.close()
            raise
        return rig

    def _trial_length(self, candidate: Candidate, wanted: int) -> int:
        """Return T for sampling alone: as configured, unless a rollout would take too long."""
        enough = int(_ROLLOUT_S * self._fps / candidate.num_envs)
        return min(wanted, max(_SHORTEST_ROLLOUT, enough))
