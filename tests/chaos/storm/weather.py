"""Kill, stop and abort the processes of a sampler at random moments, and time the recovery."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable
from dataclasses import dataclass, field

from fastrl.sampling import ProcessSampler
from fastrl.workers.handoff import Counter

KINDS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "abort": signal.SIGABRT}
_POLL_S = 0.002
_GIVE_UP_S = 120.0


@dataclass
class Storm:
    """Injects a fault into one worker at a time, and waits for its replacement before the next.

    Attributes:
        sampler: Sampler of the workers.
        seed: Seed of the choices.
        pause_s: Shortest and longest time between a recovery and the next fault.
        deadline_s: Deadline after which a stopped worker is replaced; not counted as recovery.
        extra_pids: Function that returns other processes to hit, by name.
        hits: How often each kind of fault hit each kind of worker.
        recovery_s: From each hit to the first step of the successor.
    """

    sampler: ProcessSampler
    seed: int = 0
    pause_s: tuple[float, float] = (0.0, 0.3)
    deadline_s: float = 1.0
    extra_pids: Callable[[], dict[str, int]] = dict
    hits: Tally[str] = field(default_factory=Tally)
    recovery_s: list[float] = field(default_factory=list)
    unrecovered: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Initialise the storm."""
        self._pick, self._over = random.Random(self.seed), threading.Event()
        self._thread = threading.Thread(target=self._rage, daemon=True)

    def __enter__(self) -> Storm:
        """Start the thread that injects faults."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop injecting faults."""
        self._over.set()
        self._thread.join()

    @property
    def over(self) -> bool:
        """Whether it has stopped."""
        return self._over.is_set()

    def _rage(self) -> None:
        while not self._over.wait(self._pick.uniform(*self.pause_s)):
            pids = {**self.sampler.pids(), **self.extra_pids()}
            if not pids:
                continue
            name = self._pick.choice(sorted(pids))
            # A dead process of another kind is noticed only when a caller waits for it.
            kinds = KINDS if name in self.sampler.pids() else KINDS.keys() - {"stop"}
            kind = self._pick.choice(sorted(kinds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[name], KINDS[kind])
                self._follow(name, kind, pids[name])

    def _follow(self, name: str, kind: str, pid: int) -> None:
        began_s = time.monotonic()
        while self._pid(name) == pid:
            if self._over.wait(_POLL_S) or time.monotonic() - began_s > _GIVE_UP_S:
                self._note_unrecovered(name, kind, began_s)
                return
        mark = self._mark(name)
        while self._mark(name) == mark:
            if self._over.wait(_POLL_S) or time.monotonic() - began_s > _GIVE_UP_S:
                self._note_unrecovered(name, kind, began_s)
                return
        self.hits[f"{kind} {name.rpartition('-')[0]}"] += 1
        allowed_s = self.deadline_s if kind == "stop" else 0.0
        self.recovery_s.append(max(0.0, time.monotonic() - began_s - allowed_s))

    def _note_unrecovered(self, name: str, kind: str, began_s: float) -> None:
        if time.monotonic() - began_s > _GIVE_UP_S:
            self.unrecovered.append(f"{kind} {name}")

    def _pid(self, name: str) -> int:
        return {**self.sampler.pids(), **self.extra_pids()}.get(name, -1)

    def _mark(self, name: str) -> int:
        if name not in self.sampler.counters.worker_names:
            return time.monotonic_ns()
        row = self.sampler.counters.row(name)
        return int(row[Counter.ENV_STEPS] + row[Counter.INFERENCE_CALLS])
