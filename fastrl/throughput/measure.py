"""Measures how many environment steps per second a sampler makes, without a learner.

What counts: environment steps, resets not counted though their time is, frame-skip not
multiplied, over windows of wall time that start after warm-up.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import psutil

from fastrl.arguments import brief
from fastrl.errors import ConfigError
from fastrl.sampling.process_sampler import ProcessSampler
from fastrl.sampling.sampler import Sampler
from fastrl.shared.counters import Counter
from fastrl.shared.table import NUM_BANKS
from fastrl.throughput.limits import Limit, LimitProbe
from fastrl.throughput.live import LiveFps
from fastrl.workers.throughput_meter import REPORT_TIMEOUT_S, Reading, ThroughputMeter, steps_per_s

SHARES = {
    "stepping": Counter.STEPPING_NS,
    "inference": Counter.INFERENCE_NS,
    "waiting": Counter.WAITING_NS,
    "hand-over": Counter.HAND_OVER_NS,
}


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


@dataclass(frozen=True)
class Memory:
    """Memory of one process in MiB: in use, and held by it alone."""

    rss_mib: float
    unique_mib: float


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
        sampler: What to measure, in worker processes or in this one; consumed by
            `Sampler.collect` as fast as it fills.
        protocol: How long to measure.
        probe: Measures the limit before every window, while the sampler rests.
        live: Shows what is going on.

    Raises:
        WorkerError: A worker failed.
    """
    live = live or LiveFps(None)
    result, spent = Measurement(), np.zeros_like(sampler.counters.snapshot())
    with ThroughputMeter(sampler.counters) as meter:
        live.watch(meter, sampler.starting if isinstance(sampler, ProcessSampler) else None)
        result.start_s = _warm_up(sampler, meter, protocol.warm_up_s)
        for _ in range(protocol.repeats):
            if probe is not None:
                with live.showing("measuring the limit …"):
                    sampler.pause()
                    result.limits.append(probe.measure(protocol.seconds / 2))
            first, last = _window(sampler, meter, protocol.seconds)
            result.fps.append(steps_per_s(first, last))
            result.frames += last.env_steps - first.env_steps
            spent += last.counters - first.counters
        result.memory = _memory(_pids(sampler) | meter.pids())
    result.shares = _shares(sampler.counters.worker_names, spent)
    result.hand_over_us = _hand_over(sampler)
    return result


def _warm_up(sampler: Sampler, meter: ThroughputMeter, seconds: float) -> float:
    """Start the sampler, sample for a while; return the time to its first transition."""
    start_ns = time.monotonic_ns()
    sampler.start()
    while not _has_made(sampler, 1):
        _sample(sampler)
    first_ns = next((r.at_ns for r in meter.readings if r.env_steps > 0), time.monotonic_ns())
    began_s, enough = time.monotonic(), NUM_BANKS * sampler.rollout_length
    while (passed_s := time.monotonic() - began_s) < _LONG_WARM_UP * seconds:
        # In the first rollouts every step is prepared, see `PolicyRunner`.
        if passed_s >= seconds and _has_made(sampler, enough):
            break
        _sample(sampler)
    return max(0.0, (first_ns - start_ns) / 1e9)


def _has_made(sampler: Sampler, steps: int) -> bool:
    """Return whether every environment has made so many steps."""
    per_worker = steps * sampler.topology.envs_per_worker
    made = sampler.counters.snapshot()[: sampler.topology.num_env_workers, Counter.ENV_STEPS]
    return bool(made.min() >= per_worker)


def _sample(sampler: Sampler) -> None:
    """Sample for a moment, or, in this process, a whole rollout."""
    if isinstance(sampler, ProcessSampler):
        sampler.sample_for(_MOMENT_S)
    else:
        sampler.collect()


def _window(sampler: Sampler, meter: ThroughputMeter, seconds: float) -> tuple[Reading, Reading]:
    """Sample for one window; return the readings at its ends.

    It begins and ends with a step, so that steps which take long are counted as a whole.
    """
    if not isinstance(sampler, ProcessSampler):
        sampler.collect()
        return _window_here(sampler, seconds)
    seen, first, start_ns = max(1, len(meter.readings)), None, time.monotonic_ns()
    while True:
        sampler.sample_for(_MOMENT_S)
        for before, now in pairwise(meter.readings[seen - 1 :]):
            seen += 1
            if now.env_steps == before.env_steps:
                continue
            first = first or now
            if now.at_ns - first.at_ns >= seconds * 1e9:
                return first, now
        if time.monotonic_ns() > max(start_ns, meter.latest_ns) + REPORT_TIMEOUT_S * 1e9:
            meter.wait_since(time.monotonic_ns())
        meter.count_since(start_ns)


def _window_here(sampler: Sampler, seconds: float) -> tuple[Reading, Reading]:
    """Sample whole rollouts: only between them has this process counted all that it did."""
    first = last = Reading(time.monotonic_ns(), sampler.counters.snapshot())
    while last.at_ns < first.at_ns + seconds * 1e9:
        sampler.collect()
        last = Reading(time.monotonic_ns(), sampler.counters.snapshot())
    return first, last


def _pids(sampler: Sampler) -> dict[str, int]:
    """Return the process of every worker; they share this one where there are no others."""
    if isinstance(sampler, ProcessSampler):
        return sampler.pids()
    return dict.fromkeys(sampler.counters.worker_names, os.getpid())


def _shares(names: tuple[str, ...], spent: np.ndarray) -> dict[str, dict[str, float]]:
    shares = {}
    for name, row in zip(names, spent, strict=True):
        times = {label: float(row[counter]) for label, counter in SHARES.items()}
        total = sum(times.values()) or 1.0
        shares[name] = {label: value / total for label, value in times.items()}
    return shares


def _hand_over(sampler: Sampler) -> dict[str, float]:
    if not sampler.topology.num_model_workers:
        return {}
    return {
        woken: float(np.median(latencies)) / 1e3
        for woken in ("env-worker", "model-worker")
        if len(latencies := sampler.counters.hand_over_latencies_ns(woken))
    }


def _memory(pids: dict[str, int]) -> dict[str, Memory]:
    memory = {}
    for name, pid in pids.items():
        try:
            info = psutil.Process(pid).memory_full_info()
        except psutil.Error:
            continue
        memory[name] = Memory(info.rss / 2**20, info.uss / 2**20)
    return memory
