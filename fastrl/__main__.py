"""The command ``fastrl``, which is also ``python -m fastrl``."""

import gc
import signal
import sys
from functools import partial


def main() -> int:
    """Run a command as the only task of this process; return its exit code."""
    # Ctrl-C while modules are imported ends the process without a traceback.
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from fastrl.cli import EXIT_INTERRUPTED
    from fastrl.cli import main as run

    try:
        code = run(prepare=partial(signal.signal, signal.SIGINT, handler))
    except KeyboardInterrupt:  # while the command ended
        code = EXIT_INTERRUPTED
    # The work is done; Ctrl-C would only interrupt Python's exit.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # At exit Python would search all objects of torch for cycles, which takes 0.6 s.
    gc.freeze()
    return code


if __name__ == "__main__":
    sys.exit(main())
