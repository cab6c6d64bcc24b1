"""Measures the environment steps per second of a sampler, with or without a learner.

Environment steps are counted over windows of wall time that start after warm-up. The time of resets
counts, resets themselves do not, and a step counts once with any frame-skip. With a learner, steps
count that were learnt from, in whole updates.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import takewhile

import numpy as np

from fastrl.arguments import finite_number, whole
from fastrl.closing import Closing
from fastrl.config import Config
from fastrl.errors import WorkerError
from fastrl.sampling.process_sampler import ProcessSampler
from fastrl.sampling.sampler import Memory, Sampler, SamplerStats, memory_of
from fastrl.shared.table import NUM_BANKS
from fastrl.spec import EnvSpec
from fastrl.throughput.limits import Limit, LimitProbe
from fastrl.throughput.live import LiveFps
from fastrl.throughput.updates import UpdateProbe, endless_learner
from fastrl.workers.descent import start_thread
from fastrl.workers.handoff import CounterBoard
from fastrl.workers.processes import Connection, pipe
from fastrl.workers.supervisor import Supervisor

_LOGGER = logging.getLogger(__name__)
_NAME = "throughput-meter"
_CHECK_S = 0.2
_RESTARTS = 5
"""Most replacements of the process."""
REPORT_TIMEOUT_S = 20.0
"""Longest time without readings; on an overloaded machine the process may wait for seconds."""
_MOMENT_S = 0.05
_LONG_WARM_UP = 5
"""Longest warm-up until both banks are filled, in multiples of the configured one."""


class ThroughputMeter(Closing):
    """Starts the throughput process and receives its readings in a thread.

    A process that ends is replaced. The counters are in shared memory, so only readings are lost.
    If it ends repeatedly, or sends no readings, methods raise `WorkerError`.

    Attributes:
        readings: All readings so far, oldest first.

    Args:
        counters: Counters to read.
        interval_s: Seconds between readings.
    """

    def __init__(self, counters: CounterBoard, interval_s: float = 0.05) -> None:
        self.readings: list[SamplerStats] = []
        self._counters, self._interval_s = counters, interval_s
        self._restarts_left, self._checked_s = _RESTARTS, time.monotonic()
        self._supervisor = Supervisor(request_stop=lambda: None, grace_s=0.0)
        self._start()

    def _start(self) -> None:
        self._receive, send = pipe()
        self._supervisor.start(_NAME, run_throughput_meter, self._counters, send, self._interval_s)
        send.close()
        self._thread = start_thread(_NAME, self._listen, self._receive)

    def pids(self) -> dict[str, int]:
        """Return the process id of the throughput process by name."""
        return self._supervisor.pids()

    def wait_since(
        self, start_ns: int, count: int = 1, timeout_s: float = REPORT_TIMEOUT_S
    ) -> None:
        """Wait until ``count`` readings were made at or after a moment of monotonic time."""
        deadline = time.monotonic() + timeout_s
        while self.count_since(start_ns) < count:
            if time.monotonic() > deadline:
                if _NAME in self._supervisor.pids():
                    self._supervisor.kill(_NAME)
                self._replace(WorkerError(_NAME, f"{_NAME}: no reading within {timeout_s:g} s"))
                deadline += timeout_s
            time.sleep(0.001)

    def check(self, start_ns: int) -> None:
        """Replace the process if it has ended, or sent no reading for too long since a moment."""
        latest_ns = max(start_ns, self.readings[-1].time_ns if self.readings else 0)
        if time.monotonic_ns() > latest_ns + REPORT_TIMEOUT_S * 1e9:
            self.wait_since(time.monotonic_ns())
        self.count_since(start_ns)

    def count_since(self, start_ns: int) -> int:
        """Return the number of readings at or after a moment; replace an ended process."""
        now_s = time.monotonic()
        if now_s >= self._checked_s + _CHECK_S:
            self._checked_s = now_s
            for error in self._supervisor.failures():
                self._replace(error)
        return sum(1 for _ in takewhile(lambda r: r.time_ns >= start_ns, reversed(self.readings)))

    def _replace(self, error: WorkerError) -> None:
        if not self._restarts_left:
            raise error
        self._restarts_left -= 1
        _LOGGER.warning("%s; it is replaced", error.args[0])
        self._end_listening()
        self._start()

    def _listen(self, receive: Connection) -> None:
        # A process that is killed during a write leaves an incomplete reading.
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                time_ns, counters = receive.recv()
                workers = self._counters.worker_names
                self.readings.append(SamplerStats.of_counters(time_ns, workers, counters))

    def _end_listening(self) -> None:
        self._thread.join(timeout=1.0)
        self._receive.close()

    def close(self) -> None:
        """End the process."""
        self._supervisor.stop()
        self._end_listening()


def run_throughput_meter(counters: CounterBoard, send: Connection, interval_s: float) -> None:
    """Send a reading every ``interval_s`` until the pipe is closed. Entry point of the process."""
    due = time.monotonic()
    with contextlib.suppress(BrokenPipeError, ConnectionError):
        while True:
            send.send((time.monotonic_ns(), counters.snapshot()))
            due = max(due + interval_s, time.monotonic())  # missed readings are skipped
            time.sleep(max(0.0, due - time.monotonic()))


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
        return float(np.median([limit.fps for limit in self.limits])) if self.limits else None

    @property
    def efficiency(self) -> float | None:
        """Median over the windows of FPS / limit, each pair measured side by side."""
        if not self.limits:
            return None
        pairs = zip(self.fps, self.limits, strict=True)
        return float(np.median([fps / limit.fps for fps, limit in pairs]))

    @property
    def products_limit_fps(self) -> float | None:
        """Median of `Limit.products_fps`, None if it was not measured."""
        found = [limit.products_fps for limit in self.limits if limit.products_fps is not None]
        return float(np.median(found)) if found else None

    @property
    def products_efficiency(self) -> float | None:
        """Median over the windows of FPS / `Limit.products_fps`."""
        pairs = zip(self.fps, self.limits, strict=False)
        found = [fps / limit.products_fps for fps, limit in pairs if limit.products_fps]
        return float(np.median(found)) if found else None


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
    with _Windows(sampler, training) as source:
        live.watch(source.readings, source.starting)
        result.start_s = _warm_up(sampler, source, protocol.warm_up_s)
        for _ in range(protocol.repeats):
            if probe is not None:
                with live.showing("measuring the limit …"):
                    result.limits.append(source.limit(probe, protocol.seconds / 2))
            windows.append(source.window(protocol.seconds))
        details = sampler.stats(details=True)
        result.memory = {**details.memory, **memory_of(source.meter.pids() if source.meter else {})}
    result.fps = [window.fps for window in windows]
    spent = sum((window.spent for window in windows[1:]), start=windows[0].spent)
    result.frames = sum(window.steps for window in windows)
    result.shares = spent.time_shares
    result.handoff_us = dict(details.handoff_us)
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


@dataclass(frozen=True)
class _Window:
    """Counts and times of one window.

    Attributes:
        spent: Counts and times of the workers.
        steps: Environment steps that were sampled, or learnt from.
    """

    spent: SamplerStats
    steps: int

    @property
    def fps(self) -> float:
        """Steps per second."""
        return self.steps * 1e9 / max(self.spent.time_ns, 1)


class _Windows(Closing):
    """Measures worker processes between two steps, and other samplers in whole rollouts.

    Attributes:
        meter: The throughput process, which reads the counters of worker processes.
        readings: The sampler's statistics at some moments so far, oldest first.
        starting: Returns the progress of the start in words.
    """

    def __init__(self, sampler: Sampler, training: Training | None = None) -> None:
        self._sampler, self._training = sampler, training
        self.meter: ThroughputMeter | None = None
        self.readings: list[SamplerStats] = []
        self._learnt: list[int] = []
        self.starting: Callable[[], str] | None = None
        if isinstance(sampler, ProcessSampler):
            self.starting = sampler.starting
            if training is None:
                self.meter = ThroughputMeter(sampler.counters)
                self.readings = self.meter.readings

    def sample(self) -> None:
        """Sample for a moment, or a rollout, and learn from it."""
        if self.meter is not None:
            assert isinstance(self._sampler, ProcessSampler)
            self._sampler.sample_for(_MOMENT_S)
            return
        rollout = self._sampler.collect()
        if self._training is not None:
            learner = self._training.learner
            learner.update(rollout)
            self._sampler.publish(learner.weights())
            self._learnt.append(learner.steps)
        self.readings.append(self._sampler.stats())

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

    def window(self, seconds: float) -> _Window:
        """Return the counts and times of a window.

        It begins and ends with a step, so that long steps are counted as a whole.
        """
        if self._training is not None:
            # Drop the banks that were filled during a pause.
            for _ in range(NUM_BANKS):
                self.sample()
        seen, first, start_ns = max(1, len(self.readings)), None, time.monotonic_ns()
        while True:
            self.sample()
            for now in range(seen, len(self.readings)):
                seen += 1
                if self._steps(now) == self._steps(now - 1):
                    continue
                first = now if first is None else first
                spent = self.readings[now] - self.readings[first]
                if spent.time_ns >= seconds * 1e9:
                    return _Window(spent, self._steps(now) - self._steps(first))
            if self.meter is not None:
                self.meter.check(start_ns)

    def _steps(self, reading: int) -> int:
        """Return the steps that were sampled, or learnt from, until a reading."""
        return self._learnt[reading] if self._learnt else self.readings[reading].frames

    def close(self) -> None:
        """End the throughput process."""
        if self.meter is not None:
            self.meter.close()
