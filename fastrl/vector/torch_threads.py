"""Keeps torch's idle threads from taking cores that environments need.

After every operation that is shared among threads, GNU OpenMP lets them spin for milliseconds, in
case another one follows. A program that asks its policy for actions between two steps so keeps all
cores busy, and workers wait for them: on 2 cores with torch's default of 2 threads, steps of
HalfCheetah in two processes take twice as long. OpenMP's ``omp_pause_resource_all`` (OpenMP 5.0
API, section 3.2.44) ends the threads of the calling thread; the next shared operation starts new
ones.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

from fastrl.cores import usable_cores

START_S = 75e-6
"""What starting a thread anew costs the policy, on a 2-core AMD EPYC."""

Result = TypeVar("Result")

_SOFT = 1
_MAPS = Path("/proc/self/maps")


class TorchThreads:
    """Ends torch's idle threads before a step where that pays.

    A third of a step is won where they are in the way; the next operation starts them anew.

    Args:
        workers: How many processes or threads step environments.
    """

    def __init__(self, workers: int) -> None:
        self._workers, self._cores = workers, usable_cores()
        self._pause = _pause() if workers > 1 else None
        self._began_s = self._step_s = 0.0

    def make_room(self) -> None:
        """Begin a step."""
        self._began_s = time.perf_counter()
        if self._pause is None:
            return
        idle = torch.get_num_threads() - 1
        crowded = self._workers + idle > self._cores
        if idle and crowded and self._step_s > 3 * idle * START_S:
            self._pause(_SOFT)

    def stepped(self) -> None:
        """End a step, whose time decides whether room is made for the next one."""
        self._step_s = time.perf_counter() - self._began_s

    def around(self, step: Callable[[int], Result]) -> Callable[[int], Result]:
        """Return what does as ``step`` does, with room made for it."""

        def roomy(bank: int) -> Result:
            self.make_room()
            try:
                return step(bank)
            finally:
                self.stepped()

        return roomy


@cache
def _pause() -> Callable[[int], int] | None:
    """Return the function of the OpenMP library that torch uses, None where it is not GNU's."""
    try:
        paths = {line.split()[-1] for line in _MAPS.read_text().splitlines() if "libgomp" in line}
        # Other packages may have brought another one.
        torchs = [path for path in paths if Path(torch.__file__).parent.name in Path(path).parts]
        path = min(torchs or paths, default=None)
        return None if path is None else ctypes.CDLL(path).omp_pause_resource_all
    except (OSError, AttributeError):
        return None
