"""Measures how many environment steps per second a sampler makes, without a learner.

What counts: environment steps, resets not counted though their time is, frame-skip not
multiplied, over windows of wall time that start after warm-up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from fastrl.arguments import brief
from fastrl.closing import Closing
from fastrl.errors import ConfigError
from fastrl.sampling.process_sampler import ProcessSampler
from fastrl.sampling.sampler import Sampler
from fastrl.sampling.stats import Memory, SamplerStats, memory_of
from fastrl.shared.table import NUM_BANKS
from fastrl.throughput.limits import Limit, LimitProbe
from fastrl.throughput.live import LiveFps
from fastrl.throughput.meter import REPORT_TIMEOUT_S, ThroughputMeter


@dataclass(frozen=True)
class Protocol:
    """How long to measure.

    Attributes:
        seconds: Length of one window.
        repeats: Number of windows.
        warm_up_s: Time sampled before the first window, from when every env worker has made a
            step; up to five times as much where rollouts are long, to fill two of them.
    """

    seconds: float = 5.0
    repeats: int = 5
    warm_up_s: float = 1.0

    def __post_init__(self) -> None:
        """Refuse windows that are none.

        Raises:
            ConfigError: There are no windows, or their length or the warm-up is no time.
        """
        numbers = (self.seconds, self.warm_up_s)
        are_numbers = all(isinstance(number, int | float) for number in numbers)
        is_whole = isinstance(self.repeats, int) and self.repeats >= 1
        if not (
            are_numbers
            and is_whole
            and math.inf > self.seconds > 0
            and math.inf > self.warm_up_s >= 0
        ):
            raise ConfigError(
                "a measurement takes at least one window (repeats) of some seconds, and a "
                f"warm_up_s of at least 0; got {brief(self, 200)}"
            )


@dataclass
class Measurement:
    """What was measured, window by window.

    Attributes:
        start_s: From starting the workers to their first transition.
        frames: Environment steps within the windows.
        fps: Frames per second of each window.
        limits: The limit measured next to each window; empty if it was not asked for.
        shares: Per worker, share of the windows' time by activity.
        hand_over_us: Median hand-over latencies in microseconds, by who was woken.
        memory: Per process.
    """

    start_s: float = 0.0
    frames: int = 0
    fps: list[float] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    hand_over_us: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)

    @property
    def fps_median(self) -> float:
        """Median frames per second over the windows."""
        return float(np.median(self.fps))

    @property
    def limit_fps(self) -> float | None:
        """Median limit, None where it was not measured."""
        return float(np.median([limit.fps for limit in self.limits])) if self.limits else None

    @property
    def efficiency(self) -> float | None:
        """Median over the windows of FPS / limit, each pair measured side by side."""
        if not self.limits:
            return None
        pairs = zip(self.fps, self.limits, strict=True)
        return float(np.median([fps / limit.fps for fps, limit in pairs]))


_MOMENT_S = 0.05
_LONG_WARM_UP = 5
"""How many times the warm-up it may take until both banks have been filled."""


def measure(
    sampler: Sampler,
    protocol: Protocol,
    probe: LimitProbe | None = None,
    live: LiveFps | None = None,
) -> Measurement:
    """Measure a sampler that has not been started yet; it is left running.

    Args:
        sampler: What to measure: one of worker processes in windows that end with any step, any
            other in whole rollouts.
        protocol: How long to measure.
        probe: Measures the limit before every window, while the sampler rests.
        live: Shows what is going on.

    Raises:
        WorkerError: A worker failed.
    """
    live, result = live or LiveFps(None), Measurement()
    source = _Steps(sampler) if isinstance(sampler, ProcessSampler) else _Rollouts(sampler)
    windows = []
    with source:
        live.watch(source.readings, source.starting)
        result.start_s = _warm_up(sampler, source, protocol.warm_up_s)
        for _ in range(protocol.repeats):
            if probe is not None:
                with live.showing("measuring the limit …"):
                    sampler.pause()
                    result.limits.append(probe.measure(protocol.seconds / 2))
            windows.append(source.window(protocol.seconds))
        details = sampler.stats(details=True)
        result.memory = {**details.memory, **memory_of(source.pids())}
    result.fps = [window.steps_per_s for window in windows]
    spent = sum(windows[1:], start=windows[0])
    result.frames, result.shares = spent.frames, spent.time_shares
    result.hand_over_us = dict(details.hand_over_us)
    return result


def _warm_up(sampler: Sampler, source: _Rollouts | _Steps, seconds: float) -> float:
    """Start the sampler, sample for a while; return the time to its first transition."""
    start_ns = time.monotonic_ns()
    sampler.start()
    while not _has_made(sampler, 1):
        source.sample()
    first_ns = next((r.time_ns for r in source.readings if r.frames > 0), time.monotonic_ns())
    began_s, enough = time.monotonic(), NUM_BANKS * sampler.rollout_length
    while (passed_s := time.monotonic() - began_s) < _LONG_WARM_UP * seconds:
        # In the first rollouts every step is prepared, see `PolicyRunner`.
        if passed_s >= seconds and _has_made(sampler, enough):
            break
        source.sample()
    return max(0.0, (first_ns - start_ns) / 1e9)


def _has_made(sampler: Sampler, steps: int) -> bool:
    """Return whether every environment has made so many steps."""
    per_worker = steps * sampler.topology.envs_per_worker
    made = sampler.stats().env_steps[: sampler.topology.num_env_workers]
    return bool(made.min() >= per_worker)


class _Rollouts(Closing):
    """Measures whole rollouts: between them a sampler in this process has counted all it did.

    Attributes:
        readings: What the sampler had done at some moments so far, oldest first.
    """

    starting: Callable[[], str] | None = None

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.readings: list[SamplerStats] = []

    def sample(self) -> None:
        """Sample a rollout."""
        self._collect()

    def window(self, seconds: float) -> SamplerStats:
        """Return what was done in a window."""
        first = last = self._collect()
        while last.time_ns < first.time_ns + seconds * 1e9:
            last = self._collect()
        return last - first

    def _collect(self) -> SamplerStats:
        self._sampler.collect()
        now = self._sampler.stats()
        if not self.readings or now.time_ns > self.readings[-1].time_ns + _MOMENT_S * 1e9:
            self.readings.append(now)
        return now

    def pids(self) -> dict[str, int]:
        """Return no process: none but those of the sampler are needed."""
        return {}

    def close(self) -> None:
        """Do nothing."""


class _Steps(Closing):
    """Measures from a step to a step of worker processes, which the throughput process sees.

    Attributes:
        readings: See `_Rollouts`.
    """

    def __init__(self, sampler: ProcessSampler) -> None:
        self._sampler, self._meter = sampler, ThroughputMeter(sampler.counters)
        self.readings, self.starting = self._meter.readings, sampler.starting

    def sample(self) -> None:
        """Sample for a moment."""
        self._sampler.sample_for(_MOMENT_S)

    def window(self, seconds: float) -> SamplerStats:
        """Return what was done in a window.

        It begins and ends with a step, so that steps which take long are counted as a whole.
        """
        seen, first, start_ns = max(1, len(self.readings)), None, time.monotonic_ns()
        while True:
            self.sample()
            for before, now in pairwise(self.readings[seen - 1 :]):
                seen += 1
                if now.frames == before.frames:
                    continue
                first = first or now
                if now.time_ns - first.time_ns >= seconds * 1e9:
                    return now - first
            if time.monotonic_ns() > max(start_ns, self._meter.latest_ns) + REPORT_TIMEOUT_S * 1e9:
                self._meter.wait_since(time.monotonic_ns())
            self._meter.count_since(start_ns)

    def pids(self) -> dict[str, int]:
        """Return the throughput process."""
        return self._meter.pids()

    def close(self) -> None:
        """End the throughput process."""
        self._meter.close()
