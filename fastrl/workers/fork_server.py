"""Imported first by the fork server: it ends with the process that started it, and all its tree.

Everything here happens before the long imports of `fastrl.workers.preload`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
import types
import warnings

from fastrl.errors import cause
from fastrl.workers.descent import (
    LACKS,
    OF_GROUPS,
    adopt_orphans,
    end_descendants,
    end_with,
    forks,
    send_at_end_of_parent,
)

_SERVER, _STARTER = os.getpid(), os.getppid()
_AT_END_OF_STARTER = signal.SIGURG
"""Ignored by default, so that it does no harm in children which have no handler."""

_worker = False


def _end_with_starter(number: int, frame: object) -> None:
    # Linux sends the signal when the starting thread ends, too; then the process goes on.
    if os.getpid() == _SERVER and os.getppid() != _STARTER:
        end_descendants()
        os._exit(0)


def _after_fork() -> None:
    """Have a worker end with the fork server from its first instruction on."""
    global _worker
    if _worker:  # a fork of a worker
        return
    _worker = True
    signal.signal(_AT_END_OF_STARTER, signal.SIG_DFL)
    end_with(_SERVER)
    forks.begin()


def _end_with_error(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Tell the starter by the exit code what the system lacks; say anything else in one line."""
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


# A signal to the whole process group must not take the fork server, and with it all workers, from
# a run that is being saved. It ends with the process that started it in any case. Its children
# inherit this, and so are safe from their first instruction on. The process that starts the server
# has them blocked until here.
for _number in OF_GROUPS:
    signal.signal(_number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_GROUPS)

signal.signal(_AT_END_OF_STARTER, _end_with_starter)
send_at_end_of_parent(_AT_END_OF_STARTER)

# What environments leave behind is adopted, and ended with the server, which multiprocessing's
# server does not expect.
warnings.filterwarnings("ignore", "forkserver: waitpid returned unexpected pid")
adopt_orphans()
sys.excepthook = _end_with_error
atexit.register(_end)
os.register_at_fork(after_in_child=_after_fork)
