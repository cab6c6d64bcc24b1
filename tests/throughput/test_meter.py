"""The throughput process is replaced when it fails; only readings in between are missing."""

import contextlib
import os
import signal
import time

import pytest

from fastrl.errors import WorkerError
from fastrl.throughput.measure import ThroughputMeter
from fastrl.workers.handoff import CounterBoard


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_process_that_ends_or_stops_is_replaced(number):
    with ThroughputMeter(CounterBoard(["worker"]), interval_s=0.01) as meter:
        meter.wait_since(time.monotonic_ns())
        (pid,) = meter.pids().values()
        os.kill(pid, number)
        time.sleep(0.1)
        meter.wait_since(time.monotonic_ns(), timeout_s=3.0)
        assert meter.pids() != {"throughput-meter": pid}
        times = [reading.time_ns for reading in meter.readings]
        assert times == sorted(times)


def test_process_that_ends_again_and_again_is_given_up():
    def end_for_ever(meter):
        while True:
            for pid in meter.pids().values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            meter.count_since(0)

    with (
        ThroughputMeter(CounterBoard(["worker"]), interval_s=0.01) as meter,
        pytest.raises(WorkerError, match="throughput-meter was killed by SIGKILL"),
    ):
        end_for_ever(meter)
