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
    speed at which all cores would step, run the policy or learn, and never wait. Without training
    it is that without ``t_learn``, and of the environments alone that without ``t_policy``. They
    are estimates, since a process that waits for a core counts as busy.

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

    def write(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Write the file from a row of metrics; return the limits in steps per second by name."""
        before, self._seen = self._seen, self._sampler.stats()
        spent = self._seen - before
        limits = self._limits(spent, row) if self._has_limit else {}
        found: dict[str, Any] = {
            "steps": row["steps"],
            "fps": row["fps"],
            "limit_fps": limits.get("training"),
            "limits_fps": limits,
            "activities": list(SHARES),
            "workers": {
                worker: [round(share, _DIGITS) for share in shares.values()]
                for worker, shares in spent.time_shares.items()
            },
        }
        with writing(self._path):
            write_atomically(self._path, (json.dumps(found) + "\n").encode())
        return limits

    def _limits(self, spent: SamplerStats, row: Mapping[str, Any]) -> dict[str, float]:
        """Return the limits; none where nothing was sampled."""
        stepping_ns, steps = int(spent.stepping_ns.sum()), spent.frames
        if not stepping_ns or not steps:
            return {}
        inference_ns = int(spent.inference_ns.sum()) if self._infers_here else 0
        learning_ns = self._learner_cores * row["learning_share"] * spent.time_ns
        busy_s = {
            "environment": stepping_ns / steps / 1e9,
            "policy": (stepping_ns + inference_ns) / steps / 1e9,
        }
        learnt_steps = max(row["fps"] * spent.time_ns / 1e9, 1.0)
        busy_s["training"] = busy_s["policy"] + learning_ns / learnt_steps / 1e9
        # Processes that wait for a core are no reason for a limit below what was reached.
        training = max(self._cores / busy_s["training"], float(row["fps"]))
        policy = max(self._cores / busy_s["policy"], float(row["sampling_fps"]), training)
        environment = max(self._cores / busy_s["environment"], policy)
        return {"environment": environment, "policy": policy, "training": training}
