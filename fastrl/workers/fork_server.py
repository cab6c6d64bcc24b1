"""Imported first by the fork server, to end it with the process that started it.

Its descendants end with it. It runs before the long imports of `fastrl.workers.preload`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
import threading
import types
import warnings

from fastrl.errors import cause
from fastrl.workers.descent import (
    LACKS,
    OF_GROUPS,
    adopt_orphans,
    end_descendants,
    end_with,
    ignore_signal,
    send_at_end_of_parent,
)

_SERVER, _STARTER = os.getpid(), os.getppid()
_AT_END_OF_STARTER = signal.SIGURG
"""Ignored by default, so that children without a handler ignore it."""

_worker: int | None = None
"""In a worker its process id; in forks of workers, which only environments make, 0."""
_by_main_thread = False
_mask: set[int] = set()


def _end_with_starter(number: int, frame: object) -> None:
    # Linux also sends the signal if only the starting thread ends.
    if os.getpid() == _SERVER and os.getppid() != _STARTER:
        end_descendants()
        os._exit(0)


def _before_fork() -> None:
    """In a worker, record the thread that forks, and block SIGTERM in its fork."""
    global _by_main_thread, _mask
    if _worker:
        _by_main_thread = threading.current_thread() is threading.main_thread()
        _mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _after_fork_in_parent() -> None:
    if _worker:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask)


def _after_fork_in_child() -> None:
    """Make a worker end with the fork server from its first instruction on, and its forks with it.

    A fork of a worker has the default handler of SIGTERM, so that it can be terminated. SIGINT and
    SIGHUP stay ignored: a terminal sends them to all processes at once, but a run still needs its
    environments to be saved.
    """
    global _worker
    worker, _worker = _worker, os.getpid() if _worker is None else 0
    if worker is None:
        signal.signal(_AT_END_OF_STARTER, signal.SIG_DFL)
        end_with(_SERVER)
    elif worker:
        if signal.getsignal(signal.SIGTERM) is ignore_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask)
        # The kernel also sends that signal when the forking thread ends.
        if _by_main_thread:
            end_with(worker)


def _end_with_error(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Report an error of the system by the exit code, and any other in one line."""
    if os.getpid() != _SERVER:
        sys.__excepthook__(kind, error, trace)
        return
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if number not in errno.errorcode:
        number = None
        with contextlib.suppress(Exception):  # standard error may be closed
            print(f"fastrl: the fork server ends: {cause(error)}", file=sys.stderr)  # noqa: T201
    end_descendants()
    os._exit(1 if number is None else LACKS + number)


def _end() -> None:
    if os.getpid() == _SERVER:
        end_descendants()


# A signal to the whole process group must not end the fork server, and with it all workers, while
# the run is being saved. It ends with the process that started it in any case, and its children
# inherit this. The process that starts the server has blocked these signals until here.
for _number in OF_GROUPS:
    signal.signal(_number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_GROUPS)

signal.signal(_AT_END_OF_STARTER, _end_with_starter)
send_at_end_of_parent(_AT_END_OF_STARTER)

# Orphans of environments are adopted and end with the server; multiprocessing warns of them.
warnings.filterwarnings("ignore", "forkserver: waitpid returned unexpected pid")
adopt_orphans()
sys.excepthook = _end_with_error
atexit.register(_end)
os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
