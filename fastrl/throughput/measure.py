"""Measures the environment steps per second of a sampler, with or without a learner.

Environment steps are counted over windows of wall time that start after warm-up. The time of resets
counts, resets themselves do not, and a step counts once with any frame-skip. With a learner, steps
count that were learnt from, in whole updates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fastrl.arguments import finite_number, whole
from fastrl.config import Config
from fastrl.sampling.process_sampler import ProcessSampler
from fastrl.sampling.sampler import Memory, Sampler, SamplerStats
from fastrl.shared.table import NUM_BANKS
from fastrl.spec import EnvSpec
from fastrl.throughput.limits import Limit, LimitProbe
from fastrl.throughput.live import LiveFps
from fastrl.throughput.updates import UpdateProbe, endless_learner

_MOMENT_S = 0.05
_LONG_WARM_UP = 5
"""Longest warm-up until both banks are filled, in multiples of the configured one."""


@dataclass(frozen=True)
class Protocol:
    """Durations and repeats of a measurement.

    Attributes:
        seconds: Length of one window.
        repeats: Number of windows.
        warm_up_s: Time sampled before the first window, after every env worker has made a step; up
            to five times as long for long rollouts, to fill two of them.
    """

    seconds: float = 5.0
    repeats: int = 5
    warm_up_s: float = 1.0

    def __post_init__(self) -> None:
        """Reject measurements without windows, and invalid durations.

        Raises:
            ConfigError: There are no windows, or a duration is not positive and finite.
        """
        finite_number("seconds", self.seconds, above=0)
        whole("repeats", self.repeats)
        finite_number("warm_up_s", self.warm_up_s, at_least=0)


@dataclass
class Measurement:
    """The windows of a measurement.

    Attributes:
        start_s: Seconds from the start of the workers to their first transition.
        frames: Environment steps within the windows, sampled or learnt from.
        fps: Frames per second of each window.
        limits: The limit measured next to each window; empty if it was not measured.
        shares: Per worker, share of the windows' time by activity.
        handoff_us: Median latencies of handoffs in microseconds, by the woken worker.
        memory: Memory per process.
    """

    start_s: float = 0.0
    frames: int = 0
    fps: list[float] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    handoff_us: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)

    @property
    def fps_median(self) -> float:
        """Median frames per second over the windows."""
        return float(np.median(self.fps))

    @property
    def limit_fps(self) -> float | None:
        """Median limit, None if it was not measured."""
        return _median([limit.fps for limit in self.limits])

    @property
    def efficiency(self) -> float | None:
        """Median over the windows of FPS / limit, each pair measured side by side."""
        return _median([fps / limit.fps for fps, limit in self._pairs])

    @property
    def products_limit_fps(self) -> float | None:
        """Median of `Limit.products_fps`, None if it was not measured."""
        return _median([limit.products_fps for limit in self.limits if limit.products_fps])

    @property
    def products_efficiency(self) -> float | None:
        """Median over the windows of FPS / `Limit.products_fps`."""
        return _median([fps / x.products_fps for fps, x in self._pairs if x.products_fps])

    @property
    def _pairs(self) -> Iterator[tuple[float, Limit]]:
        return zip(self.fps, self.limits, strict=bool(self.limits))


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


class Training:
    """A learner that is measured together with a sampler.

    Attributes:
        learner: Learns from each rollout.
        alone: Times its updates on one core; None if they are not timed.

    Args:
        config: Configuration of the run.
        env_spec: Spaces of the environment.
        with_limit: Time updates alone on one core as well, if the learner computes on the CPU.

    Raises:
        ConfigError: The algorithm or the model cannot be built.
    """

    def __init__(self, config: Config, env_spec: EnvSpec, *, with_limit: bool) -> None:
        self.learner = endless_learner(config, env_spec)
        is_timed = with_limit and config.algorithm.device == "cpu"
        self.alone = UpdateProbe(config, env_spec) if is_timed else None


def measure(
    sampler: Sampler,
    protocol: Protocol,
    probe: LimitProbe | None = None,
    live: LiveFps | None = None,
    training: Training | None = None,
) -> Measurement:
    """Measure a sampler that was not started; it continues to run.

    Args:
        sampler: Sampler to measure; one with worker processes in windows that end with any step,
            any other, and with training, in whole rollouts.
        protocol: Durations and repeats.
        probe: Measures the limit before every window, while the sampler is paused.
        live: Shows the speed.
        training: Learner, with whose weights the sampler was made.

    Raises:
        WorkerError: A worker failed.
        FastrlError: Learning diverged.
    """
    live, result = live or LiveFps(None), Measurement()
    windows = []
    source = _Windows(sampler, training)
    live.watch(source.readings, source.starting)
    result.start_s = _warm_up(sampler, source, protocol.warm_up_s)
    for _ in range(protocol.repeats):
        if probe is not None:
            with live.showing("measuring the limit …"):
                result.limits.append(source.limit(probe, protocol.seconds / 2))
        windows.append(source.window(protocol.seconds))
    details = sampler.stats(details=True)
    result.fps = [steps * 1e9 / max(spent.time_ns, 1) for spent, steps in windows]
    result.frames = sum(steps for _, steps in windows)
    spent = sum((spent for spent, _ in windows[1:]), start=windows[0][0])
    result.shares = spent.time_shares
    result.handoff_us = dict(details.handoff_us)
    result.memory = dict(details.memory)
    return result


def _warm_up(sampler: Sampler, source: _Windows, seconds: float) -> float:
    """Start the sampler, sample for a while; return the time to its first transition."""
    start_ns = time.monotonic_ns()
    sampler.start()
    while not _has_made(sampler, 1):
        source.sample()
    first_ns = next((r.time_ns for r in source.readings if r.frames > 0), time.monotonic_ns())
    began_s, enough = time.monotonic(), NUM_BANKS * sampler.rollout_length
    while (passed_s := time.monotonic() - began_s) < _LONG_WARM_UP * seconds:
        # In the first rollouts calls for every step are prepared, see `PolicyRunner`.
        if passed_s >= seconds and _has_made(sampler, enough):
            break
        source.sample()
    return max(0.0, (first_ns - start_ns) / 1e9)


def _has_made(sampler: Sampler, steps: int) -> bool:
    """Return whether every environment has made this number of steps."""
    per_worker = steps * sampler.topology.envs_per_worker
    made = sampler.stats().env_steps[: sampler.topology.num_env_workers]
    return bool(made.min() >= per_worker)


class _Windows:
    """Measures worker processes between two steps, and other samplers in whole rollouts.

    Attributes:
        readings: The sampler's statistics at some moments so far, oldest first.
        starting: Returns the progress of the start in words.
    """

    def __init__(self, sampler: Sampler, training: Training | None) -> None:
        self._sampler, self._training = sampler, training
        self.readings: list[SamplerStats] = []
        self._steps: list[int] = []  # that were sampled, or learnt from, until each reading
        self.starting: Callable[[], str] | None = None
        if isinstance(sampler, ProcessSampler):
            self.starting = sampler.starting

    def sample(self) -> None:
        """Sample for a moment, or a rollout, and learn from it; then take a reading."""
        sampler, training = self._sampler, self._training
        if training is not None:
            training.learner.update(sampler.collect())
            sampler.publish(training.learner.weights())
        elif isinstance(sampler, ProcessSampler):
            sampler.sample_for(_MOMENT_S)
        else:
            sampler.collect()
        found = sampler.stats()
        self.readings.append(found)
        self._steps.append(found.frames if training is None else training.learner.steps)

    def limit(self, probe: LimitProbe, seconds: float) -> Limit:
        """Pause the sampler and measure the limit; a rollout of the pause is not learnt from."""
        training = self._training
        if training is None or training.alone is None:
            self._sampler.pause()
            return probe.measure(seconds)
        rollout = self._sampler.collect()
        self._sampler.pause()
        updates = training.alone.measure(rollout, training.learner.state_dict(), seconds)
        return replace(probe.measure(seconds), learning=updates)

    def window(self, seconds: float) -> tuple[SamplerStats, int]:
        """Return counts and times of a window, and its steps that were sampled or learnt from.

        It begins and ends with a step, so that long steps are counted as a whole.
        """
        if self._training is not None:
            # Drop the banks that were filled during a pause.
            for _ in range(NUM_BANKS):
                self.sample()
        first = None
        while True:
            self.sample()
            if self._steps[-2:-1] == self._steps[-1:]:
                continue
            first = len(self._steps) - 1 if first is None else first
            spent = self.readings[-1] - self.readings[first]
            if spent.time_ns >= seconds * 1e9:
                return spent, self._steps[-1] - self._steps[first]
