"""Ends torch's idle threads before a step of environments that need their cores.

After every operation that is shared among threads, they spin for milliseconds in GNU OpenMP, in
case another one follows: on 2 cores with torch's default of 2 threads, steps of HalfCheetah in two
processes take twice as long. OpenMP's ``omp_pause_resource_all`` (OpenMP 5.0 API, section 3.2.44)
ends the threads of the calling thread; the next shared operation starts new ones.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from fastrl.system import usable_cores

_SOFT = 1
_MAPS = Path("/proc/self/maps")


class TorchThreads:
    """Ends torch's idle threads if that saves more time than a new start of them takes.

    Args:
        workers: Number of processes or threads that step environments.
    """

    def __init__(self, workers: int) -> None:
        self._workers, self._cores = workers, usable_cores()
        self._pause = _pause() if workers > 1 else None
        self._began_s = self._step_s = 0.0

    def make_room(self) -> None:
        """Begin a step."""
        if self._pause is None:
            return
        idle = torch.get_num_threads() - 1
        crowded = idle and self._workers + idle > self._cores
        if crowded and self._step_s > 3 * start_s(idle):
            self._pause(_SOFT)  # saves a third of a step
        self._began_s = time.perf_counter()

    def stepped(self) -> None:
        """End a step, whose time decides whether threads are ended before the next one."""
        self._step_s = time.perf_counter() - self._began_s


@cache
def start_s(idle: int) -> float:
    """Return the seconds to start a number of idle threads again; takes 1 ms."""
    pause, times = _pause(), []
    assert pause is not None
    numbers = torch.zeros(1 << 17, device="cpu")  # large enough for several threads
    for is_anew in (False, True) * 5:
        if is_anew:
            pause(_SOFT)
        began = time.perf_counter()
        numbers.add_(1)
        times.append(time.perf_counter() - began)
    return max(0.0, sorted(times[1::2])[2] - sorted(times[2::2])[2])


@cache
def _pause() -> Callable[[int], int] | None:
    """Return the function of the OpenMP library that torch uses, None unless it is GNU's."""
    try:
        paths = {line.split()[-1] for line in _MAPS.read_text().splitlines() if "libgomp" in line}
        # Other packages may have loaded another one.
        torchs = [path for path in paths if Path(torch.__file__).parent.name in Path(path).parts]
        path = min(torchs or paths, default=None)
        return None if path is None else ctypes.CDLL(path).omp_pause_resource_all
    except (OSError, AttributeError):
        return None
