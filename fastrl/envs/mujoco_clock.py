"""Stops MuJoCo from reading the clock about twenty times per step.

Its Python bindings install a timer that fills ``mjData.timer``, which is rarely read: on a
virtual machine it takes 10 to 16 % of a step of HalfCheetah.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def stop_timers() -> None:
    """Leave ``mjData.timer`` unfilled for the rest of this process, which must be a worker."""
    hook = _timer_hook()
    if hook is not None:
        hook.value = None


def untimed(call: Callable[[Argument], Result]) -> Callable[[Argument], Result]:
    """Return a function that leaves ``mjData.timer`` unfilled while ``call`` runs.

    It is ``call`` itself if MuJoCo is not loaded. Timers of other threads are off meanwhile.
    """
    hook = _timer_hook()
    if hook is None:
        return call

    def untimed_call(argument: Argument) -> Result:
        timer, hook.value = hook.value, None
        try:
            return call(argument)
        finally:
            if timer:  # else another thread has removed it, and restores it
                hook.value = timer

    return untimed_call


def mujoco_library() -> ctypes.CDLL | None:
    """Return the library that the mujoco package has loaded, None if it is not found."""
    return _loaded()[0] if "mujoco" in sys.modules else None


def _timer_hook() -> ctypes.c_void_p | None:
    """Return the global ``mjcb_time``, a function pointer that may be null."""
    return _loaded()[1] if "mujoco" in sys.modules else None


@cache
def _loaded() -> tuple[ctypes.CDLL | None, ctypes.c_void_p | None]:
    """Return MuJoCo's library and its timer hook, found once."""
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
