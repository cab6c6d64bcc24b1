"""A trial as a process: ``fastrl train`` or ``fastrl resume`` on some of the cores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from fastrl.durable import last_lines, writing
from fastrl.errors import one_line
from fastrl.system import usable_cores

STOP_S = 60.0
"""How long a run may take to save and end after it was asked to, before it is killed."""
_KILLED_S = 10.0
"""How long the kernel may take to end a killed process."""

PROGRAM = "fastrl.cli.trial"
"""Module that is run with the order of a trial."""
_ERROR = "fastrl: error: "


class StartedTrial(Protocol):
    """A run that has been started, such as a `TrialProcess`.

    Attributes:
        is_lost: Whether it has ended because its machine does not answer.
    """

    is_lost: bool

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        ...

    def stop(self) -> None:
        """Ask the run to save and end."""

    def kill(self) -> None:
        """End it now, and with it its workers; safe to call twice."""

    def problem(self) -> str:
        """Return in one line why it failed."""
        ...


class Share(Protocol):
    """Some cores, on which one trial runs at a time."""

    def start(self, arguments: Sequence[str], log: Path, code: bytes) -> StartedTrial:
        """Start a trial; see `TrialProcess`."""
        ...


class TrialProcess:
    """A run in a process that ends with this one, at the latest.

    Its output goes to a file, and it gets none of a terminal's signals: the sweep passes on those
    that end it.

    Args:
        arguments: Of ``fastrl``.
        cores: What it may use; empty for all.
        log: File that its output is appended to.
        code: What this program `packed` for the run.

    Attributes:
        is_lost: Whether it has ended because its machine does not answer: never, on this one.

    Raises:
        WriteError: The file cannot be written.
        OSError: No process can be started.
    """

    is_lost = False

    def __init__(
        self, arguments: Sequence[str], cores: Sequence[int], log: Path, code: bytes
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
        """Whether it has ended; kills it where it was asked to and takes too long."""
        if self._process.poll() is not None:
            return True
        if self._stop_at and time.monotonic() > self._stop_at:
            self.kill()
        return False

    def stop(self) -> None:
        """Ask the run to save and end; only the first time."""
        if not self._stop_at and self._process.poll() is None:
            self._stop_at = time.monotonic() + STOP_S
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it now, and with it its workers; safe to call twice."""
        with suppress(OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait(_KILLED_S)

    def problem(self) -> str:
        """Return in one line why it failed."""
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
    """Return the environment variable of a trial by which torch counts the cores of the machine.

    It decomposes matrices, and so makes orthogonal weights, by another algorithm with one thread.
    """
    name = "OMP_NUM_THREADS"
    if not hasattr(os, "sched_getaffinity"):
        return {}
    return {name: os.environ.get(name, str(len(os.sched_getaffinity(0))))}


@dataclass(frozen=True)
class CoreShare:
    """Some cores of this machine, on which one trial runs at a time.

    Attributes:
        cores: Empty where processes cannot be bound to cores.
    """

    cores: list[int]

    def start(self, arguments: Sequence[str], log: Path, code: bytes) -> TrialProcess:
        """Start a trial; see `TrialProcess`."""
        return TrialProcess(arguments, self.cores, log, code)


def shares(jobs: int, most: int | None = None) -> list[list[int]]:
    """Return the cores of each of some processes: all of them, and each core once if they suffice.

    Args:
        jobs: Number of processes.
        most: How many cores there are for all of them; by default those of the machine.

    Returns:
        Lists of cores; empty ones where a process cannot be bound to cores.
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return [[] for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))[:most]
    # A quota may allow less time than there are cores; each process then sees its part of it.
    usable = min(len(cores), max(jobs, usable_cores()))
    if jobs > usable:
        return [[cores[job % usable]] for job in range(jobs)]
    ends = [job * usable // jobs for job in range(jobs + 1)]
    return [cores[first:end] for first, end in pairwise(ends)]
