"""A trial in a process: ``fastrl train`` or ``fastrl resume`` on some of the cores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from fastrl.durable import last_lines, writing
from fastrl.errors import one_line
from fastrl.system import usable_cores

STOP_S = 60.0
"""Time in which a run must save and end on request, before it is killed."""
_KILLED_S = 10.0
"""Time in which the kernel must end a killed process."""

PROGRAM = "fastrl.cli.trial"
"""Module that runs a trial."""
_ERROR = "fastrl: error: "


class TrialProcess:
    """A run in a process, which ends with this one at the latest.

    Its output is written to a file. It receives no signals of a terminal; the sweep forwards those
    that end it.

    Args:
        cores: What it may use; empty for all.
        arguments: Of ``fastrl``.
        log: File that its output is appended to.
        code: Result of `packed` for the run.

    Attributes:
        is_lost: Whether it has ended because its machine does not answer; not this machine.

    Raises:
        WriteError: The file cannot be written.
        OSError: No process can be started.
    """

    is_lost = False

    def __init__(
        self, cores: Sequence[int], arguments: Sequence[str], log: Path, code: bytes
    ) -> None:
        self._log, self._stop_at = log, 0.0
        order = {
            "parent": os.getpid(),
            "cores": list(cores),
            "arguments": list(arguments),
        }
        with writing(log):
            output = log.open("ab")
        with output:
            self._begin = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", PROGRAM, json.dumps(order)],
                env=os.environ | environment(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as sink:
            sink.write(code)

    @property
    def ended(self) -> bool:
        """Whether it has ended; kills it if it takes too long after `stop`."""
        if self._process.poll() is not None:
            return True
        if self._stop_at and time.monotonic() > self._stop_at:
            self.kill()
        return False

    def stop(self) -> None:
        """Request the run to save and end, once."""
        if not self._stop_at and self._process.poll() is None:
            self._stop_at = time.monotonic() + STOP_S
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it and its workers; safe to call twice."""
        with suppress(OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait(_KILLED_S)

    def problem(self) -> str:
        """Return the reason of its failure in one line."""
        code = self._process.returncode
        if code == -signal.SIGKILL:
            return "killed by SIGKILL, as where memory is short; fewer --jobs need less"
        if code < 0:
            return f"killed by signal {-code}"
        with suppress(OSError):
            lines = [line.decode(errors="replace") for line in last_lines(self._log, self._begin)]
            said = [line.partition(_ERROR)[2] for line in lines if _ERROR in line] or lines
            if said:
                return one_line(said[-1], None)
        return f"ended with exit code {code}; see '{self._log}'"


def environment() -> dict[str, str]:
    """Return the environment variable that makes torch count all cores of the machine.

    With one thread torch uses another matrix decomposition, and so other orthogonal weights.
    """
    name = "OMP_NUM_THREADS"
    if not hasattr(os, "sched_getaffinity"):
        return {}
    return {name: os.environ.get(name, str(len(os.sched_getaffinity(0))))}


def shares(jobs: int, most: int | None = None) -> list[list[int]]:
    """Divide all cores among processes, each core once if there are enough.

    Args:
        jobs: Number of processes.
        most: Number of cores for all processes; by default those of the machine.

    Returns:
        Lists of cores; empty ones if a process cannot be bound to cores.
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return [[] for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))[:most]
    # A quota may allow less time than all cores; each process then sees its part of the quota.
    usable = min(len(cores), max(jobs, usable_cores()))
    if jobs > usable:
        return [[cores[job % usable]] for job in range(jobs)]
    ends = [job * usable // jobs for job in range(jobs + 1)]
    return [cores[first:end] for first, end in pairwise(ends)]
