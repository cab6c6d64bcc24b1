"""Where the time of each worker goes during training, and how fast it could be at most."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastrl.config import Config
from fastrl.sampling import Sampler, SamplerStats
from fastrl.sampling.stats import SHARES
from fastrl.system import usable_cores
from fastrl.training.durable import write_atomically, writing

_DIGITS = 4


class WorkerTimes:
    """Replaces ``workers.json`` with what the workers did between two rows of metrics.

    The limit is ``cores / (t_step + t_policy + t_learn)``, with the times of this window: the
    speed at which all cores would step, run the policy or learn, and never wait. It is an estimate,
    since a process that waits for a core counts as busy.

    Args:
        path: The file.
        sampler: Has the workers.
        config: Says on which devices the policy and the learner compute.
        learner_threads: Threads of the learner.
    """

    def __init__(self, path: Path, sampler: Sampler, config: Config, learner_threads: int) -> None:
        self._path, self._sampler, self._cores = path, sampler, usable_cores()
        self._learner_cores = learner_threads if config.algorithm.device == "cpu" else 0
        self._infers_here = config.sampler.device == "cpu"
        # Steps on other machines, or on a device, take none of these cores.
        self._has_limit = config.cluster is None and config.sampler.kind != "device"
        self._seen = sampler.stats()

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the file; ``row`` is the row of metrics of the window that ends now.

        Raises:
            WriteError: It cannot be written.
        """
        before, self._seen = self._seen, self._sampler.stats()
        spent = self._seen - before
        found: dict[str, Any] = {
            "steps": row["steps"],
            "fps": row["fps"],
            "limit_fps": self._limit(spent, row) if self._has_limit else None,
            "activities": list(SHARES),
            "workers": {
                worker: [round(share, _DIGITS) for share in shares.values()]
                for worker, shares in spent.time_shares.items()
            },
        }
        with writing(self._path):
            write_atomically(self._path, (json.dumps(found) + "\n").encode())

    def _limit(self, spent: SamplerStats, row: Mapping[str, Any]) -> float | None:
        """Return the limit in steps per second; None where nothing was sampled."""
        busy_ns = int(spent.stepping_ns.sum())
        if self._infers_here:
            busy_ns += int(spent.inference_ns.sum())
        learning = self._learner_cores * row["learning_share"]
        busy = busy_ns / max(spent.time_ns, 1) + learning
        return float(row["fps"] * max(1.0, self._cores / busy)) if busy_ns else None
