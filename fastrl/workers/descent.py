"""Ends processes together with their parents, including children of environments.

Imports neither torch nor multiprocessing, so that the fork server and commands start quickly.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

import psutil

from fastrl.errors import FastrlError

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
NO_THREAD = (
    "no thread can be started: too many processes and threads run, or too little memory is free; "
    "raise the limit (ulimit -u, or the pids limit of the container)"
)
LACKS = 100
"""Exit code of a fork server after an error of the system, to which the errno is added."""
OF_GROUPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that a terminal or a scheduler sends to all processes of a run at once."""
_MARK = "FASTRL_WORKER"
"""Environment variable of all programs that a worker starts."""
_MOST_ROUNDS = 100
"""Limit of attempts to kill a tree that keeps starting processes."""


def ignore_signal(number: int, frame: object) -> None:
    """Ignore a signal; unlike SIG_IGN, programs started with exec do not inherit this."""


@contextlib.contextmanager
def without_hangups() -> Iterator[None]:
    """Ignore SIGHUP in the block, if it runs in the main thread."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGHUP"):
        yield
        return
    before = signal.signal(signal.SIGHUP, ignore_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


class NoThreadError(FastrlError):
    """The system has no threads or memory left for another thread."""

    kind = "system"


def start_thread(name: str, target: Callable[..., None], *args: Any) -> threading.Thread:
    """Start a daemon thread that runs ``target(*args)``.

    Raises:
        NoThreadError: The system has no threads or memory left.
    """
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise NoThreadError(NO_THREAD) from error
    return thread


def end_with(parent: int) -> None:
    """Make the kernel kill this process when its parent ends; exit if it has already ended.

    Args:
        parent: Process id of the parent.
    """
    if send_at_end_of_parent(signal.SIGKILL) and os.getppid() != parent:
        os._exit(1)


def send_at_end_of_parent(number: int) -> bool:
    """Make the kernel signal this process when the thread that started it ends, if possible.

    Returns:
        False if the system does not support it.
    """
    return control_process(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Become the parent of all descendants whose parents end, on Linux."""
    control_process(_PR_SET_CHILD_SUBREAPER, 1)


def control_process(option: int, value: int | bytes) -> bool:
    """Set an option of Linux's prctl; return False on other systems."""
    if not sys.platform.startswith("linux"):
        return False
    ctypes.CDLL(None).prctl(option, value)
    return True


def end_descendants() -> None:
    """Kill all descendants of this process, including those that start meanwhile."""
    for _ in range(_MOST_ROUNDS):
        children = [each for each in _descendants() if _runs(each)]
        if not children:
            return
        end_all(children)


def descendants_of(pids: Iterable[int]) -> list[psutil.Process]:
    """Return all descendants of some descendants of this process, without the given ones."""
    roots = set(pids)
    found: list[psutil.Process] = []
    for each in _descendants():
        with contextlib.suppress(psutil.Error):
            # Parents come before their children.
            if each.ppid() in roots and each.pid not in roots:
                roots.add(each.pid)
                found.append(each)
    return found


def mark_programs(mark: str) -> None:
    """Mark the programs that this process starts from now on, for `marked`."""
    os.environ[_MARK] = mark


def marked(marks: Container[str]) -> list[psutil.Process]:
    """Return the descendants of this process with some marks, and their descendants.

    They are found even if the process that started them was killed.
    """
    found: list[psutil.Process] = []
    for each in _descendants():
        with contextlib.suppress(psutil.Error, OSError):
            if each.environ().get(_MARK) in marks:
                found.append(each)
    return found + descendants_of([each.pid for each in found])


def end_all(found: Iterable[psutil.Process]) -> None:
    """Kill those processes that still exist."""
    for each in found:
        with contextlib.suppress(psutil.Error):
            each.kill()


def _descendants() -> list[psutil.Process]:
    """Return all descendants of this process, parents first; none if they are not visible."""
    try:
        return psutil.Process().children(recursive=True)
    except (psutil.Error, OSError):
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
