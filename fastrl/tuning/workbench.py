"""Measures candidates on this machine; the two latest stay running, for measurements in turns.

Environments that were just started end fewer episodes in a short window than they will in
training, and the more environments there are, the fewer. If a reset takes as long as two hundred
steps, many environments would seem twice as fast as they are. So the frequency and duration of
ends of episodes are measured once with a few environments, and every window is corrected to that
rate.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal

from fastrl.closing import Closing, closed_after, closing_on_error
from fastrl.config import Config
from fastrl.errors import ConfigError, FastrlError
from fastrl.sampling.build import make_plan, make_sampler, require_environments
from fastrl.sampling.process_sampler import ProcessSampler
from fastrl.sampling.sampler import Memory, SamplerStats, memory_of
from fastrl.sampling.worker_pool import Fault
from fastrl.shared.table import NUM_BANKS, Layout, Schema
from fastrl.system import free_bytes, usable_cores
from fastrl.throughput.updates import endless_learner
from fastrl.tuning.space import Candidate, with_candidate
from fastrl.tuning.study import Notes, Sample, TrialError
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.supervisor import call_in_child

Objective = Literal["fps", "train_fps"]

_LOGGER = logging.getLogger(__name__)
_RUNNING = 2  # candidates that stay running
_SETTLE_S = 0.05  # sampled before a window, until caches are warm
_ROLLOUT_S = 0.05  # longest rollout; short windows would contain none of the longer ones
_SHORTEST_ROLLOUT = 4
_CALIBRATION_S = 4.0  # longest time in which resets are watched
_USABLE_MEMORY = 0.7  # share of the free memory; other programs need some, too
_ENDS_PER_ENV = 2  # episodes after which environments end at different times, roughly


@dataclass(frozen=True)
class Resets:
    """Ends of episodes per environment step, and the seconds by which an end prolongs a step."""

    per_step: float = 0.0
    seconds: float = 0.0

    @classmethod
    def seen(
        cls, spent: SamplerStats, envs_per_group: int, time_limit: int | None = None
    ) -> Resets:
        """Return the resets that the counters of a window show.

        Args:
            spent: Counters of the window.
            envs_per_group: Environments that are stepped together.
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
        """Return the duration of a window with the usual number of resets.

        Args:
            spent_s: Length of the window.
            spent: Counters of the window.
            in_parallel: Environments that can be reset at the same time.
            idle_s: Idle time of cores, in which they could have reset.
        """
        missing = self.per_step * float(spent.frames) - float(spent.episodes.sum())
        more_s = missing * self.seconds / in_parallel
        if more_s > 0:
            more_s = max(0.0, more_s - idle_s / in_parallel)
        # Resets are at most three quarters of a window, even with measurement errors.
        return max(spent_s / 4, spent_s + more_s)


@dataclass(frozen=True)
class MemoryNeed:
    """Memory of candidates, extrapolated from a small one."""

    schema: Schema
    rollout_length: int
    process_bytes: int  # of a worker without environments
    env_bytes: int  # of one environment
    most_bytes: int  # that may be used

    def fits(self, c: Candidate) -> bool:
        """Return whether there is enough memory for a candidate and a running one."""
        return 2 * self.of(c) <= self.most_bytes

    def of(self, c: Candidate) -> int:
        """Return the bytes that a candidate needs."""
        table = NUM_BANKS * Layout(self.schema, self.rollout_length, c.num_envs).num_bytes
        processes = c.num_env_workers + c.num_model_workers
        return table + processes * self.process_bytes + c.num_envs * self.env_bytes


class _Rig:
    """One candidate, running or at rest; no window may take longer than ``limit_s``."""

    def __init__(
        self, config: Config, plan: SamplingPlan, objective: Objective, limit_s: float
    ) -> None:
        self._limit_s, self._topology = limit_s, plan.topology
        self._is_async = config.sampler.mode == "async"
        self._is_late, self._learner = threading.Event(), None
        self._learnt_s, self._learnt_steps = 0.0, 0
        if objective == "train_fps":
            # Built before the sampler, which allocates shared memory.
            self._learner = endless_learner(config, plan.env_spec)
        sampler = make_sampler(config, plan, on_fault=self._on_fault)
        assert isinstance(sampler, ProcessSampler), "only sampler.kind: process is tuned"
        self._sampler = sampler
        self.close = sampler.close

    def start(self, limit_s: float) -> None:
        """Sample until the first rollout is complete."""
        with self._limited(limit_s):
            self._sampler.start()
            self._sample()

    def window(self, seconds: float, resets: Resets) -> Sample:
        """Sample for some time, then rest."""
        with self._limited(self._limit_s):
            self._sample(_SETTLE_S)
            first, learnt_s, steps = self._sampler.stats(), self._learnt_s, self._learnt_steps
            self._sample(seconds)
            spent = self._sampler.stats() - first
            self._sampler.pause(self._limit_s)
        spent_s, learnt_s = spent.time_ns / 1e9, self._learnt_s - learnt_s
        steps = spent.frames if self._learner is None else self._learnt_steps - steps
        cores, idle_s = usable_cores(), 0.0
        if self._is_async:
            # Workers that wait for a core count as busy, so this is a lower bound of idle time.
            busy_ns = spent.stepping_ns + spent.inference_ns + spent.handoff_ns
            idle_s = max(0.0, cores * spent_s - float(busy_ns.sum()) / 1e9 - learnt_s)
        in_parallel = min(self._topology.num_env_workers, cores)
        usual_s = resets.usual_s(spent_s, spent, in_parallel, idle_s)
        notes = Notes(steps / spent_s, spent.by_kind().time_shares, learnt_s / spent_s)
        return Sample(steps / usual_s, notes)

    def calibrate(self, seconds: float, time_limit: int | None) -> tuple[Resets, int]:
        """Sample until most environments have ended a few episodes, for at most some time.

        Returns:
            The cost of resets, and the bytes of a worker's own memory.
        """
        stats, enough = self._sampler.stats, _ENDS_PER_ENV * self._topology.num_envs
        with self._limited(self._limit_s):
            first, until_s = stats(), time.perf_counter() + seconds
            spent = stats() - first
            while time.perf_counter() < until_s and spent.episodes.sum() < enough:
                self._sample()
                spent = stats() - first
        resets = Resets.seen(spent, self._topology.envs_per_group, time_limit)
        return resets, _mean_bytes(stats(details=True).memory)

    def _sample(self, seconds: float = 0.0) -> None:
        """Sample one rollout, and more for some time, and learn from them."""
        until_s = time.perf_counter() + seconds
        while True:
            rollout = self._sampler.collect()
            if self._learner is not None:
                began_s = time.perf_counter()
                self._learner.update(rollout)
                self._sampler.publish(self._learner.weights())
                self._learnt_s += time.perf_counter() - began_s
                self._learnt_steps = self._learner.steps
            if time.perf_counter() >= until_s:
                return

    def _on_fault(self, fault: Fault) -> None:
        """Allow a replacement of a worker, as in a run, unless `_limited` has ended it."""
        if self._is_late.is_set():
            raise TrialError(fault.cause)
        _LOGGER.warning("%s", fault)

    @contextmanager
    def _limited(self, limit_s: float) -> Iterator[None]:
        """Kill the workers after some time, and raise a `TrialError`."""
        self._is_late.clear()

        def give_up() -> None:
            self._is_late.set()
            for pid in self._sampler.pids().values():
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(limit_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        except FastrlError as error:
            if not self._is_late.is_set():
                raise
            problem = f"sampling took longer than {limit_s:.0f} s"
            raise TrialError(problem, exhausted=True, limit_s=self._limit_s) from error
        finally:
            timer.cancel()


class Workbench(Closing):
    """Measures candidates for one configuration; a `Measure`. Use it in a ``with`` block.

    Args:
        config: Configuration; a candidate replaces its sampler's keys.
        objective: ``fps`` samples only; ``train_fps`` learns as well.
        limit_s: Longest time of a window.
        start_limit_s: Longest time of a start, by default ``limit_s``. If it is given, it is at
            least ``sampler.start_timeout_s`` until one candidate has been measured.
    """

    def __init__(
        self,
        config: Config,
        objective: Objective = "fps",
        limit_s: float = 20.0,
        start_limit_s: float | None = None,
    ) -> None:
        require_environments(config)
        if config.sampler.wait != "all":
            raise ConfigError("sampler.wait: must be all for tuning, which measures whole rollouts")
        # In a cluster, this machine is tuned.
        config = config.model_copy(update={"cluster": None})
        self._config, self._objective, self._limit_s = config, objective, limit_s
        self._start_limit_s = self._first_limit_s = start_limit_s or limit_s
        if start_limit_s is not None:
            self._first_limit_s = max(start_limit_s, config.sampler.start_timeout_s)
        self._rigs: dict[Candidate, _Rig] = {}
        self._fps, self._resets = 0.0, Resets()
        self.plan = make_plan(config)

    def __call__(self, candidate: Candidate, seconds: float) -> Sample:
        """Return a window of a candidate, while the others are paused.

        Raises:
            FastrlError: The candidate cannot be built, crashed, or needs too much memory or time.
        """
        rig = self._rigs.pop(candidate, None)
        if rig is None:
            while len(self._rigs) >= _RUNNING:
                self._rigs.pop(next(iter(self._rigs))).close()
            rig = self._started(candidate)
        with closing_on_error(rig):
            sample = rig.window(seconds, self._resets)
        self._rigs[candidate], self._first_limit_s = rig, self._start_limit_s
        self._fps = max(self._fps, sample.fps)
        return sample

    def calibrate(self, candidate: Candidate) -> MemoryNeed:
        """Measure speed, cost of resets and memory with a few environments.

        The speed determines the length of the rollouts of trials.

        Returns:
            The memory that candidates need.
        """
        plan, groups = self.plan, candidate.groups
        n = min(8, candidate.envs_per_worker) // groups * groups or groups
        rig = self._started(candidate.but(envs_per_worker=n), _SHORTEST_ROLLOUT)
        with closed_after(rig):
            self._fps = rig.window(_SETTLE_S, self._resets).fps
            seconds = min(_CALIBRATION_S, self._limit_s / 4)
            found = rig.calibrate(seconds, plan.env_spec.max_episode_steps)
            self._resets, worker_bytes = found
        process_bytes = call_in_child(_own_bytes, self._config.sampler.start_timeout_s)
        env_bytes = max(0, worker_bytes - process_bytes) // n
        usable = int(_USABLE_MEMORY * free_bytes())
        return MemoryNeed(plan.schema, plan.rollout_length, process_bytes, env_bytes, usable)

    def close(self) -> None:
        """End all processes."""
        while self._rigs:
            self._rigs.popitem()[1].close()

    def _started(self, candidate: Candidate, rollout_length: int | None = None) -> _Rig:
        config = with_candidate(self._config, candidate)
        plan = make_plan(config, env_spec=self.plan.env_spec)
        if self._objective == "fps":
            # As configured, unless a rollout would take too long.
            enough = max(_SHORTEST_ROLLOUT, int(_ROLLOUT_S * self._fps / candidate.num_envs))
            length = rollout_length or min(plan.rollout_length, enough)
            plan = replace(plan, rollout_length=length, sequence_length=None)
            sampler = config.sampler.model_copy(update={"mode": "async"})
            config = config.model_copy(update={"sampler": sampler})
        rig = _Rig(config, plan, self._objective, self._limit_s)
        with closing_on_error(rig):
            rig.start(self._first_limit_s)
        return rig


def _mean_bytes(memory: Mapping[str, Memory]) -> int:
    """Return the mean of the processes' own memory."""
    found = [each.unique_mib * 2**20 for each in memory.values()]
    return int(sum(found) / max(1, len(found)))


def _own_bytes() -> int:
    return _mean_bytes(memory_of({"tuner": os.getpid()}))
