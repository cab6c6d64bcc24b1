"""Keeps MuJoCo from reading the clock some twenty times per step.

Its Python bindings install a timer that fills ``mjData.timer``, which hardly anybody reads: on a
virtual machine it takes 10 to 16 % of a step of HalfCheetah.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


@contextmanager
def timers_off() -> Iterator[None]:
    """Leave ``mjData.timer`` unfilled while the block runs, if MuJoCo is loaded at all.

    What the timers of other threads count meanwhile is worth nothing.
    """
    hook = _timer_hook()
    if hook is None:
        yield
        return
    timer, hook.value = hook.value, None
    try:
        yield
    finally:
        if timer:  # else another thread has it, and puts it back
            hook.value = timer


def stop_timers() -> None:
    """Leave it unfilled for as long as this process lives, which must be a worker's."""
    hook = _timer_hook()
    if hook is not None:
        hook.value = None


def untimed(step: Callable[[int], Result]) -> Callable[[int], Result]:
    """Return what does as ``step`` does with `timers_off`, or ``step`` itself without MuJoCo."""
    hook = _timer_hook()
    if hook is None:
        return step

    def quicker(bank: int) -> Result:
        # As `timers_off` does, without a context manager, which would take 1 µs.
        timer, hook.value = hook.value, None
        try:
            return step(bank)
        finally:
            if timer:
                hook.value = timer

    return quicker


def mujoco_library() -> ctypes.CDLL | None:
    """Return the library that the mujoco package has loaded, None where it is not in sight."""
    return _loaded()[0] if "mujoco" in sys.modules else None


def _timer_hook() -> ctypes.c_void_p | None:
    """Return the global ``mjcb_time``, a function pointer that may be null."""
    return _loaded()[1] if "mujoco" in sys.modules else None


@cache
def _loaded() -> tuple[ctypes.CDLL | None, ctypes.c_void_p | None]:
    """Return MuJoCo's library and its timer hook, looked for once."""
    names = ("libmujoco.so*", "libmujoco.*dylib", "mujoco.dll")
    folder = Path(str(sys.modules["mujoco"].__file__)).parent
    path = next((found for name in names for found in folder.glob(name)), None)
    if path is None:
        return None, None
    library = ctypes.CDLL(str(path))
    try:
        return library, ctypes.c_void_p.in_dll(library, "mjcb_time")
    except ValueError:
        return library, None
