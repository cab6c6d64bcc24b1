"""Run directories in the format of training, made without training."""

from __future__ import annotations

import json
import math
import os
import random

from fastrl.config import EnvConfig
from fastrl.training.run_directory import RunDirectory
from tests.training.clockwork import small_run

WORKERS = {
    "env-worker-0": [0.52, 0.21, 0.24, 0.03],
    "env-worker-1": [0.49, 0.2, 0.28, 0.03],
}


def rows_of(seed, num_rows=60, total_steps=60_000, best=500.0):
    """Return rows of training that look like those of a run that learns."""
    draw = random.Random(seed)
    rows = []
    for number in range(1, num_rows + 1):
        share = number / num_rows
        rows.append(
            {
                "kind": "training",
                "steps": round(total_steps * share),
                "wall_s": 30.0 * share,
                "return_mean": best / (1 + math.exp(6 - 10 * share)) * draw.uniform(0.9, 1.0),
                "fps": draw.uniform(1900, 2100),
                "sampling_fps": 3000.0,
                "learning_fps": 6000.0,
                "sampling_share": 0.63,
                "learning_share": 0.31,
                "entropy": 0.69 * (1 - share / 2) * draw.uniform(0.97, 1.0),
                "explained_variance": min(0.98, share * 1.4) * draw.uniform(0.9, 1.0),
                "approx_kl": 0.01 * draw.uniform(0.3, 1.0),
                "loss": draw.uniform(-0.01, 0.01),
            }
        )
    return rows


def make_run(path, rows=None, *, finished=False, running=False, faults=(), env=None, **changes):
    """Write a run's directory as training leaves it; a running one belongs to this process."""
    config = small_run(path, **changes)
    if env is not None:
        config = config.model_copy(update={"env": EnvConfig(id=env)})
    run = RunDirectory.create(path, config)
    run.close()
    append(path, rows_of(config.seed) if rows is None else rows)
    (path / "faults.jsonl").write_text("".join(json.dumps(fault) + "\n" for fault in faults))
    workers = {
        "steps": 60_000,
        "fps": 2000.0,
        "limit_fps": 2900.0,
        "limits_fps": {"environment": 8000.0, "policy": 5000.0, "training": 2900.0},
        "activities": ["stepping", "inference", "waiting", "handoff"],
        "workers": WORKERS,
    }
    (path / "workers.json").write_text(json.dumps(workers))
    if finished:
        (path / "summary.json").write_text(json.dumps({"steps": 60_000}))
    if not running:
        (path / ".lock").write_text("999999999")
        os.utime(path / "metrics.jsonl", (10**9, 10**9))
    return path


def append(path, rows):
    """Append rows of metrics, as a run does."""
    with (path / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def fault(cause="env-worker-0 died: killed by signal 9", **changes):
    """Return a row of ``faults.jsonl``."""
    return {
        "at": "2026-11-30T01:00:00.000+00:00",
        "worker": "env-worker-0",
        "cause": cause,
        "remote_traceback": "",
        "restarts": 1,
        "rollout": 3,
        "step": 5,
        "suspects": [],
        **changes,
    }
