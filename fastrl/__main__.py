"""The command ``fastrl``, which is also ``python -m fastrl``."""

import gc
import signal
import sys


def main() -> int:
    """Run a command as the only task of this process; return its exit code."""
    # Ctrl-C while modules are imported ends the process without a traceback.
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from fastrl.cli import main as run

    signal.signal(signal.SIGINT, handler)
    code = run()
    # At exit Python would search all objects of torch for cycles, which takes 0.6 s.
    gc.freeze()
    return code


if __name__ == "__main__":
    sys.exit(main())
