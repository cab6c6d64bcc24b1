"""What every worker process does around its work: settings, reports, and ending with its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastrl.allocator import keep_freed_memory
from fastrl.free_memory import lack_of_memory
from fastrl.workers.descent import end_descendants, ignore_signal, start_thread
from fastrl.workers.hand_over import StopRequestedError

if TYPE_CHECKING:
    from fastrl.workers.processes import Connection

_PR_SET_NAME = 15
_SUMMARY_CHARS, _TRACEBACK_CHARS = 2_000, 12_000
"""Longest report: a pipe holds 64 KiB, and nobody may be reading it yet."""


_depth = 0


def depth() -> int:
    """Return how many workers deep this process is; 0 where the user's script runs."""
    return _depth


def worker_main(
    name: str,
    work: Callable[[], None],
    report: Connection,
    lifeline: Connection,
    torch_threads: int,
    depth: int,
) -> None:
    """Run a worker; report what it raises.

    Args:
        name: What it is called in messages.
        work: What it does.
        report: Takes one (summary, traceback) if it fails.
        lifeline: Ends with the process that started this one.
        torch_threads: Intra-op threads of torch.
        depth: How many workers, this one included, are between it and the user's process.
    """
    import torch

    global _depth
    _depth = depth
    _leave_signals_to_the_supervisor()
    _take_name(name)
    keep_freed_memory()
    torch.set_num_threads(torch_threads)
    try:
        _die_with_parent(lifeline)
        work()
    except StopRequestedError:
        pass
    except BaseException as error:
        lack = lack_of_memory(error)
        trace = "" if lack else _clipped(traceback.format_exc(), _TRACEBACK_CHARS)
        with contextlib.suppress(OSError):  # nobody may be there any more to read it
            report.send((_clipped(lack, _SUMMARY_CHARS) or _summary(error), trace))
        sys.exit(1)


def _summary(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # somebody else's __str__
        text = f"{type(error).__name__} (its message cannot be printed)"
    return _clipped(text, _SUMMARY_CHARS)


def _clipped(text: str, limit: int) -> str:
    """Return the text, its middle left out where it is too long."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} […] {text[-limit // 2 :]}"


def _leave_signals_to_the_supervisor() -> None:
    """Go on when a whole process group is told to end: the supervisor decides what ends, and when.

    Ctrl-C, a closed terminal and many schedulers signal all processes at once, and a worker that
    ended before its run was saved would look like a failure. What an environment starts with exec
    gets the default for SIGTERM back, so that it can be terminated.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, ignore_signal)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _take_name(name: str) -> None:
    """Have ``ps`` and ``top`` show who this is, in the 15 bytes that Linux gives to a name."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15])


def _die_with_parent(lifeline: Connection) -> None:
    """End this process and its children when the one that started it is gone, even by SIGKILL.

    The fork server's end does the same (see `fastrl.workers.fork_server`), even where native code
    never lets this thread run.
    """

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv_bytes()
        end_descendants()
        os.kill(os.getpid(), signal.SIGKILL)

    start_thread("lifeline", watch)
