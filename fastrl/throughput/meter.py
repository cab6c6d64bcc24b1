"""The throughput process: reads the shared counters on its own clock and reports what it saw."""

from __future__ import annotations

import contextlib
import logging
import pickle
import time
from collections.abc import Iterable
from itertools import takewhile

from fastrl.closing import Closing
from fastrl.errors import WorkerError
from fastrl.sampling.stats import SamplerStats
from fastrl.shared.counters import CounterBoard
from fastrl.workers.descent import start_thread
from fastrl.workers.processes import Connection, pipe
from fastrl.workers.supervisor import Supervisor

_LOGGER = logging.getLogger(__name__)
_NAME = "throughput-meter"
_LOOK_S = 0.2
_RESTARTS = 5
"""How often the process is replaced before its failure is taken for a mistake."""
REPORT_TIMEOUT_S = 20.0
"""How long readings may stay away; on a crowded machine its process may starve for seconds."""


class ThroughputMeter(Closing):
    """Starts the throughput process and receives its readings, on a thread of its own.

    A process that ends is replaced: the counters are in shared memory, so that only readings in
    between are missing.

    Attributes:
        readings: All readings so far, oldest first.

    Args:
        counters: The board to read.
        interval_s: Time between readings.
    """

    def __init__(self, counters: CounterBoard, interval_s: float = 0.05) -> None:
        self.readings: list[SamplerStats] = []
        self._counters, self._interval_s = counters, interval_s
        self._restarts_left, self._looked_s = _RESTARTS, time.monotonic()
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

    @property
    def latest_ns(self) -> int:
        """Monotonic time of the latest reading, 0 before the first."""
        return self.readings[-1].time_ns if self.readings else 0

    def wait_since(
        self, start_ns: int, count: int = 1, timeout_s: float = REPORT_TIMEOUT_S
    ) -> None:
        """Wait until so many readings were made at or after a moment of monotonic time.

        Raises:
            WorkerError: The throughput process ended again and again, or did not report.
        """
        deadline = time.monotonic() + timeout_s
        while self.count_since(start_ns) < count:
            if time.monotonic() > deadline:
                if _NAME in self._supervisor.pids():
                    self._supervisor.kill(_NAME)
                self._replace(WorkerError(_NAME, f"{_NAME}: no reading within {timeout_s:g} s"))
                deadline += timeout_s
            time.sleep(0.001)

    def count_since(self, start_ns: int) -> int:
        """Return how many readings were made at or after a moment of monotonic time.

        Raises:
            WorkerError: The throughput process ended again and again.
        """
        self._look()
        return sum(1 for _ in takewhile(lambda r: r.time_ns >= start_ns, reversed(self.readings)))

    def ends(self, start_ns: int) -> tuple[SamplerStats, SamplerStats]:
        """Return the first reading at or after a moment of monotonic time, and the last one.

        Raises:
            WorkerError: No two readings were made within the deadline.
        """
        self.wait_since(start_ns, 2)
        return self.readings[-self.count_since(start_ns)], self.readings[-1]

    def _look(self) -> None:
        """Replace the process if it has ended."""
        now_s = time.monotonic()
        if now_s < self._looked_s + _LOOK_S:
            return
        self._looked_s = now_s
        for error in self._supervisor.failures():
            self._replace(error)

    def _replace(self, error: WorkerError) -> None:
        if not self._restarts_left:
            raise error
        self._restarts_left -= 1
        _LOGGER.warning("%s; it is replaced", error.args[0])
        self._end_listening()
        self._start()

    def _listen(self, receive: Connection) -> None:
        # A process that is killed in the middle of a reading leaves half of one.
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
    """Send a reading every ``interval_s`` until nobody listens. Entry point of the process."""
    for _ in _ticks(interval_s):
        try:
            send.send((time.monotonic_ns(), counters.snapshot()))
        except (BrokenPipeError, ConnectionError):
            return


def _ticks(interval_s: float) -> Iterable[None]:
    """Yield at a steady rate; ticks that were missed are skipped."""
    due = time.monotonic()
    while True:
        yield
        due = max(due + interval_s, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
