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
        order: JSON of ``parent``, the process with which this one ends; ``cores`` that it may use,
            empty for all; ``beside``, a directory of modules or null; and ``arguments``.
    """
    from fastrl.workers.descent import end_with

    wanted = json.loads(order)
    end_with(wanted["parent"])
    # Before libraries are loaded, which start a thread per core.
    if wanted["cores"]:
        os.sched_setaffinity(0, wanted["cores"])
    if wanted["beside"]:
        sys.path.append(wanted["beside"])
    from fastrl.cli import main as run

    return run(wanted["arguments"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
