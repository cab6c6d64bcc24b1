"""The journal of a run: writes and shows metrics, evaluations and worker failures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastrl.config import Config
from fastrl.durable import append_line, read_bounded, write_atomically, writing
from fastrl.sampling import Fault, Sampler, SamplerStats
from fastrl.sampling.sampler import SHARES
from fastrl.system import usable_cores
from fastrl.training.evaluation import EvaluationResult
from fastrl.training.metrics import MetricsLog
from fastrl.training.progress import Progress
from fastrl.training.remarks import LearningSigns
from fastrl.training.run_directory import RunDirectory
from fastrl.training.window import Update, Window

FINAL = "final_evaluation"
"""Kind of the final evaluation's row; its episodes differ from those of other evaluations."""

_ROWS_PER_RUN = 200


def described(fault: Fault) -> tuple[dict[str, Any], str]:
    """Return a worker failure as a row of ``faults.jsonl``, and in one line."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"at": at, **fault.to_dict()}, str(fault)


class RunJournal:
    """Writes and shows updates and evaluations as rows of metrics, and worker failures.

    Args:
        config: Sets the interval of rows.
        run: Run directory, with the file of worker failures.
        log: Writes the rows.
        progress: Shows the rows.
        window: Sums up the updates since the last row.
        signs: Detects rows that show that the policy does not learn.

    Raises:
        WriteError: ``faults.jsonl`` is not a file.
    """

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        log: MetricsLog,
        progress: Progress,
        window: Window,
        signs: LearningSigns,
    ) -> None:
        self._log, self._progress, self._window, self._signs = log, progress, window, signs
        self._every_s = config.logging.every_s
        every_steps = config.logging.every_steps
        self._every_steps = every_steps or max(1, config.total_steps // _ROWS_PER_RUN)
        self._sampler: Sampler | None = None
        self._times: WorkerTimes | None = None
        self._config, self._run, self._workers = config, run, run.workers
        self._faults = run.faults
        with writing(run.faults):
            self._num_faults = self._earlier_faults()

    def watch(self, sampler: Sampler, learner_threads: int) -> None:
        """Write the times of the workers, too, with each row from now on.

        The idle time of an asynchronous sampler is subtracted; see `Window.row`.
        """
        self._times = WorkerTimes(self._workers, sampler, self._config, learner_threads)
        if self._config.sampler.mode == "async":
            self._sampler, self._seen = sampler, sampler.stats()

    def note_update(self, update: Update) -> None:
        """Add an update to the window."""
        self._window.add(update)
        self._progress.advance(update.steps)

    def flush_if_due(self) -> None:
        """Write a row if one is due."""
        if self._window.steps >= self._every_steps or self._window.open_s >= self._every_s:
            self.flush()

    def flush(self) -> None:
        """Write a row for the updates since the last one, if there are any."""
        if self._window.steps:
            self._run.require()
            row = self._window.row(self._idle_s())
            row["restarts"] = self._num_faults
            self._log.write("training", row)
            limits = {} if self._times is None else self._times.write(row)
            self._progress.show(row, limits)
            for sign in self._signs.found_in(row):
                self._progress.remark(sign)

    def note_fault(self, row: Mapping[str, Any], text: str) -> None:
        """Write a worker failure, as `described` returned it, to ``faults.jsonl`` and show it."""
        self._run.require()
        with writing(self._faults):
            append_line(self._faults, row)
        self._num_faults += 1
        self._progress.remark(text)

    def note_evaluation(
        self, result: EvaluationResult, steps: int, kind: str = "evaluation"
    ) -> None:
        """Write an evaluation of the policy after ``steps`` as a row of the given kind."""
        row = {
            "steps": steps,
            "return_mean": result.return_mean,
            "return_std": result.return_std,
            "length_mean": result.length_mean,
            "episodes": len(result.returns),
            "cut": result.cut,
            **result.info_row(),
        }
        self._run.require()
        self._log.write(kind, row)
        self._progress.show_evaluation(result, steps)

    def _earlier_faults(self) -> int:
        """Return the number of failures in earlier sessions; 0, with a remark, if unreadable.

        Raises:
            OSError: The file is a directory or a pipe, to which no failure can be appended.
        """
        try:
            return read_bounded(self._faults).count(b"\n") if self._faults.exists() else 0
        except OSError as error:
            if not self._faults.is_file():
                raise
            problem = f"'{self._faults}' cannot be read: {error.strerror or error}"
            self._progress.remark(f"restarts are counted from 0, as {problem}")
            return 0

    def _idle_s(self) -> float | None:
        """Return the workers' mean time without sampling since the last row.

        With model workers, waiting for actions and waiting for the learner are counted together,
        and none of it is counted as idle.
        """
        if self._sampler is None or self._sampler.topology.num_model_workers:
            return None if self._sampler is None else 0.0
        before, self._seen = self._seen, self._sampler.stats()
        return float((self._seen - before).waiting_ns.mean()) / 1e9


_DIGITS = 4


class WorkerTimes:
    """Writes ``workers.json``: the times of the workers between two rows of metrics.

    The limit is ``cores / (t_step + t_policy + t_learn)``, with the times of this window: the speed
    if all cores always stepped, ran the policy or learnt, and never waited. Without training
    ``t_learn`` is left out, and for the environments alone ``t_policy`` as well. Limits are
    estimates, since a process that waits for a core counts as busy.

    Args:
        path: The file.
        sampler: Sampler of the workers.
        config: Sets the devices of the policy and the learner.
        learner_threads: Number of the learner's threads.
    """

    def __init__(self, path: Path, sampler: Sampler, config: Config, learner_threads: int) -> None:
        self._path, self._sampler, self._cores = path, sampler, usable_cores()
        self._learner_cores = learner_threads if config.algorithm.device == "cpu" else 0
        self._infers_here = config.sampler.device == "cpu"
        # Steps on other machines, or on a device, do not use these cores.
        self._has_limit = config.cluster is None and config.sampler.kind != "device"
        self._seen = sampler.stats()

    def write(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Write the file; ``row`` is the row of metrics of the window that ends now.

        Returns:
            The limits in steps per second: ``environment``, ``policy`` and ``training``; empty
            if they are unknown.

        Raises:
            WriteError: The file cannot be written.
        """
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
        """Return the limits; none if nothing was sampled."""
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
        # A limit is at least the speed that was reached, even if processes waited for cores.
        training = max(self._cores / busy_s["training"], float(row["fps"]))
        policy = max(self._cores / busy_s["policy"], float(row["sampling_fps"]), training)
        environment = max(self._cores / busy_s["environment"], policy)
        return {"environment": environment, "policy": policy, "training": training}
