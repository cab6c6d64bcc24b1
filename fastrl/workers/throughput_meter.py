"""The throughput process: reads the shared counters on its own clock and reports what it saw."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fastrl.errors import WorkerError
from fastrl.shared.counters import Counter, CounterBoard
from fastrl.workers.supervisor import Connection, Supervisor, pipe

REPORT_TIMEOUT_S = 20.0
"""How long readings may stay away; on a crowded machine its process may starve for seconds."""


@dataclass(frozen=True)
class Reading:
    """All counters at one moment.

    Attributes:
        at_ns: Monotonic time.
        counters: ``[workers, Counter]`` int64.
    """

    at_ns: int
    counters: NDArray[np.int64]

    @property
    def env_steps(self) -> int:
        """Environment steps of all workers so far."""
        return int(self.counters[:, Counter.ENV_STEPS].sum())


def steps_per_s(first: Reading, last: Reading) -> float:
    """Return the mean throughput between two readings, in environment steps per second."""
    return (last.env_steps - first.env_steps) * 1e9 / max(last.at_ns - first.at_ns, 1)


class ThroughputMeter:
    """Starts the throughput process and receives its readings, on a thread of its own.

    Attributes:
        readings: All readings so far, oldest first.

    Args:
        counters: The board to read.
        interval_s: Time between readings.
    """

    def __init__(self, counters: CounterBoard, interval_s: float = 0.05) -> None:
        self.readings: list[Reading] = []
        self._receive, send = pipe()
        self._supervisor = Supervisor(request_stop=lambda: None, grace_s=0.0)
        self._supervisor.start("throughput-meter", run_throughput_meter, counters, send, interval_s)
        send.close()
        self._thread = threading.Thread(target=self._listen, name="throughput-meter", daemon=True)
        self._thread.start()

    def pids(self) -> dict[str, int]:
        """Return the process id of the throughput process by name."""
        return self._supervisor.pids()

    def wait_since(
        self, start_ns: int, count: int = 1, timeout_s: float = REPORT_TIMEOUT_S
    ) -> None:
        """Wait until so many readings were made at or after a moment of monotonic time.

        Raises:
            WorkerError: The throughput process ended, or did not report within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while self.count_since(start_ns) < count:
            self._supervisor.check()
            if time.monotonic() > deadline:
                raise WorkerError("throughput-meter", f"no reading within {timeout_s:g} s")
            time.sleep(0.001)

    def count_since(self, start_ns: int) -> int:
        """Return how many readings were made at or after a moment of monotonic time."""
        return sum(1 for _ in takewhile(lambda r: r.at_ns >= start_ns, reversed(self.readings)))

    def ends(self, start_ns: int) -> tuple[Reading, Reading]:
        """Return the first reading at or after a moment of monotonic time, and the last one.

        Raises:
            WorkerError: No two readings were made within the deadline.
        """
        self.wait_since(start_ns, 2)
        return self.readings[-self.count_since(start_ns)], self.readings[-1]

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self.readings.append(self._receive.recv())

    def close(self) -> None:
        """End the process."""
        self._supervisor.stop()
        self._thread.join(timeout=1.0)
        self._receive.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self.close()


def run_throughput_meter(counters: CounterBoard, send: Connection, interval_s: float) -> None:
    """Send a reading every ``interval_s`` until nobody listens. Entry point of the process."""
    for _ in _ticks(interval_s):
        try:
            send.send(Reading(time.monotonic_ns(), counters.snapshot()))
        except (BrokenPipeError, ConnectionError):
            return


def _ticks(interval_s: float) -> Iterable[None]:
    """Yield at a steady rate; ticks that were missed are skipped."""
    due = time.monotonic()
    while True:
        yield
        due = max(due + interval_s, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
