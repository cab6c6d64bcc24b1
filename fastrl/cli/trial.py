"""The process of one trial of ``fastrl sweep``, which runs a command on some of the cores.

It is started by `fastrl.sweeps.trial_process`, and ends when that process does.
"""

from __future__ import annotations

import json
import os
import sys


def main(order: str) -> int:
    """Run a command of fastrl; return its exit code.

    Args:
        order: JSON of ``parent``, the process that this one ends with; ``cores`` that it may use,
            empty for all; and ``arguments``. Standard input has what the program `packed`.
    """
    from fastrl.workers.descent import end_with

    wanted = json.loads(order)
    end_with(wanted["parent"])
    # Before libraries are loaded, which start a thread per core.
    if wanted["cores"]:
        os.sched_setaffinity(0, wanted["cores"])
    from fastrl.cli import main as run

    return run(wanted["arguments"], _unpack)


def _unpack() -> None:
    from fastrl.program_code import unpacked

    unpacked(sys.stdin.buffer.read())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
