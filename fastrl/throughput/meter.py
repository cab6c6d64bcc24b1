"""The throughput process, which reads the shared counters at a steady rate."""

from __future__ import annotations

import contextlib
import logging
import pickle
import time
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
_CHECK_S = 0.2
_RESTARTS = 5
"""How often the process is replaced."""
REPORT_TIMEOUT_S = 20.0
"""How long readings may be missing; on an overloaded machine the process may wait for seconds."""


class ThroughputMeter(Closing):
    """Starts the throughput process and receives its readings in a thread.

    A process that ends is replaced. The counters are in shared memory, so only readings are lost.
    If it ends again and again, or sends no readings, methods raise `WorkerError`.

    Attributes:
        readings: All readings so far, oldest first.

    Args:
        counters: The board to read.
        interval_s: Time between readings.
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
        """Return how many readings were made at or after a moment; replace an ended process."""
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
        # A process that is killed while it sends leaves an incomplete reading.
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
            due = max(due + interval_s, time.monotonic())  # readings that were missed are skipped
            time.sleep(max(0.0, due - time.monotonic()))
