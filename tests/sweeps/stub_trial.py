"""Stands for the process of a trial: writes a run's files at once, or fails, or waits to be ended.

The value of ``algorithm.gamma`` decides: the score, except 0.5, which fails, and 0.75, which runs
until SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from fastrl.workers.descent import end_with


def main() -> int:
    order = json.loads(sys.argv[1])
    end_with(order["parent"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = order["arguments"]
    if arguments[0] == "resume":
        run = Path(arguments[1])
        keys = json.loads((run / "config.yaml").read_text())
    else:
        keys = dict(text.split("=", 1) for text in arguments[1:] if "=" in text)
        run = Path(json.loads(keys["run_dir"]))
        run.mkdir()
        (run / "config.yaml").write_text(json.dumps(keys))
    with (run / "orders.jsonl").open("a") as file:
        cores = len(os.sched_getaffinity(0)) if not order["cores"] else len(order["cores"])
        file.write(json.dumps({"does": arguments[0], "cores": cores, "pid": os.getpid()}) + "\n")
    gamma = float(keys.get("algorithm.gamma", 0.9))
    with (run / "metrics.jsonl").open("a") as file:
        for steps in (10, 20):
            row = {"kind": "evaluation", "steps": steps, "return_mean": gamma}
            file.write(json.dumps(row) + "\n")
    if gamma == 0.5 and not Path("cured").exists():
        sys.stderr.write("a remark\nfastrl: error: the environment is on fire\n")
        return 1
    while gamma == 0.75 and not Path("cured").exists():
        time.sleep(0.02)
    summary = {"eval_return_mean": gamma, "steps": 20, "wall_s": 2.0, "eval_info": {"won": 0.25}}
    (run / "summary.json").write_text(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
