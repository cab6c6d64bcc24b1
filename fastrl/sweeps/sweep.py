"""Runs the trials of a sweep side by side, and records their results."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrl.arguments import at_least_one, file_path, function, instance
from fastrl.durable import append_line, last_lines, make_directory, read_bounded, writing
from fastrl.errors import ConfigError, FastrlError, WorkerError
from fastrl.json_lines import object_of, row_of
from fastrl.program_code import packed
from fastrl.runs import locked
from fastrl.sweeps.optuna_search import OptunaSearch, SearchSpace
from fastrl.sweeps.sweep_plan import Pins, SweepPlan
from fastrl.sweeps.sweep_report import (
    State,
    SweepReport,
    TrialResult,
    read_result,
    training_values,
)
from fastrl.sweeps.trial_process import TrialProcess, shares
from fastrl.system import usable_cores
from fastrl.training.interrupts import Interrupts

if TYPE_CHECKING:
    from fastrl.sweeps.node_trials import NodeTrial

LOG = "sweep.jsonl"
"""File of a sweep: its plan, the values of its trials, and their ends."""
_POLL_S = 0.1
_SAY_S = 1.0
"""Seconds between two lines of progress."""
_LOGGER = logging.getLogger(__name__)

Start = Callable[[Sequence[str], Path, bytes], "TrialProcess | NodeTrial"]
"""Starts a trial on some cores, one at a time: arguments, log and code as for `TrialProcess`."""
_Trial = tuple[int, dict[str, Any]]
"""Number and values of a trial."""


@dataclass
class _Running:
    """A running trial."""

    number: int
    values: dict[str, Any]
    total_steps: int
    start: Start
    process: TrialProcess | NodeTrial
    metrics_bytes: int = 0
    is_pruned: bool = False


class Sweep:
    """A sweep, which creates its directory or continues there.

    Each trial is a run in its own directory, by the command ``fastrl train`` in its own process.
    Trials that have finished are not run again; those that were stopped or have failed continue
    from their last checkpoint.

    Attributes:
        directory: Directory of all files.
        interrupted: The signal that ended `run` early, or None.

    Args:
        plan: Plan of the sweep.
        directory: By default `SweepPlan.directory`.
        jobs: Trials that run at a time, on each machine of a cluster; by default one per core.

    Raises:
        ConfigError: An argument is invalid.
        EnvError: The environment cannot be built.
    """

    def __init__(
        self, plan: SweepPlan, directory: str | Path | None = None, jobs: int | None = None
    ) -> None:
        instance("plan", plan, SweepPlan)
        given = plan.directory() if directory is None else file_path("directory", directory)
        self.directory = given
        self.interrupted: signal.Signals | None = None
        self._plan, self._metric = plan, plan.base.evaluation.metric
        self._count = plan.space.trials if plan.space else sum(1 for _ in plan.combinations())
        self._jobs = jobs if jobs is None else at_least_one("jobs", jobs)
        self._results: dict[int, TrialResult] = {}
        self._search: OptunaSearch | None = None
        self._on_end: Callable[[TrialResult], None]
        self._free: list[Start] = []
        self._running: list[_Running] = []
        self._lost: list[_Trial] = []
        self._pins = Pins()
        self._pins.of(plan.base)

    def __str__(self) -> str:
        """Describe the trials in one line."""
        said = f"{self.directory}: {self._count} trials"
        if (cluster := self._plan.given.cluster) is not None:
            return f"{said} on the machines of the cluster '{cluster.address}'"
        found = self._own_shares()
        sizes = sorted({len(cores) for cores in found})
        cores = f"{' or '.join(map(str, sizes))} core{'s' if sizes != [1] else ''} each"
        where = "shared cores" if sizes == [0] else cores
        return f"{said}, {len(found)} at a time on {where}"

    def run(
        self,
        on_end: Callable[[TrialResult], None],
        command: str = "",
        on_progress: Callable[[str], None] = lambda text: None,
    ) -> SweepReport:
        """Run the trials until all have ended, or until Ctrl-C or SIGTERM.

        A trial that fails does not end the sweep. After a second Ctrl-C runs are killed.

        Args:
            on_end: Called with each trial that has ended.
            command: The command line that repeats it.
            on_progress: Called each second with a line on the progress of the trials.

        Raises:
            ConfigError: The directory contains other files, another process runs this sweep, or
                the cluster cannot be used.
            WorkerError: No machine of the cluster is left.
            WriteError: A file cannot be written.
        """
        function("on_end", on_end)
        self._on_end = on_end
        with self._starts() as starts:
            self._free = list(starts)
            with writing(self.directory, ConfigError):
                make_directory(self.directory)
            lock = locked(self.directory)
            try:
                known = self._opened()
                waiting = self._waiting(known)
                with Interrupts() as interrupts:
                    self._run(waiting, interrupts, on_progress)
                    self.interrupted = interrupts.requested
            finally:
                os.close(lock)
        results = [self._results[number] for number in sorted(self._results)]
        return SweepReport(self.directory, self._metric, results, command)

    def _own_shares(self) -> list[list[int]]:
        return shares(min(usable_cores(), self._count) if self._jobs is None else self._jobs)

    def _starts(self) -> AbstractContextManager[Sequence[Start]]:
        """Return what starts trials on each share of this machine, or of those of a cluster."""
        if self._plan.given.cluster is None:
            return nullcontext([partial(TrialProcess, cores) for cores in self._own_shares()])
        # This imports the package ray.
        from fastrl.sweeps.node_trials import node_starts

        return node_starts(self._plan.given, self.directory / LOG, self._count, self._jobs)

    def _path(self, number: int) -> Path:
        return self.directory / f"trial-{number:03d}"

    def _opened(self) -> dict[int, dict[str, Any]]:
        """Read the results of earlier sessions; return the values of all their trials by number."""
        known: dict[int, dict[str, Any]] = {}
        ended: dict[int, tuple[State, str]] = {}
        rows = _rows(self.directory / LOG)
        if not rows:
            if any(each.name not in (LOG, ".lock") for each in self.directory.iterdir()):
                raise ConfigError(f"'{self.directory}' contains other files; choose another --dir")
            self._note(sweep=self._plan.identity())
            return known
        if rows[0].get("sweep") != self._plan.identity():
            raise ConfigError(
                f"'{self.directory}' holds another sweep{_difference(rows[0], self._plan)}; "
                "choose another --dir"
            )
        for row in rows[1:]:
            if isinstance(number := row.get("trial"), int):
                if "values" in row:
                    known[number] = row["values"]
                elif "state" in row:
                    ended[number] = (row["state"], row.get("error", ""))
        for number, values in known.items():
            end = ended.get(number)
            kept = end if end is not None and end[0] == "pruned" else None
            result = read_result(number, values, self._path(number), self._metric, kept)
            if result is not None:
                self._results[number] = result
        return known

    def _note(self, **row: Any) -> None:
        with writing(self.directory / LOG):
            append_line(self.directory / LOG, row)

    def _waiting(self, known: Mapping[int, dict[str, Any]]) -> Iterator[_Trial]:
        """Yield number and values of each trial that has not ended yet."""
        if self._plan.space is None:
            trials: Iterator[_Trial] = enumerate(self._plan.combinations())
        else:
            trials = self._drawn(self._plan.space, known)
        return (trial for trial in trials if trial[0] not in self._results)

    def _drawn(self, space: SearchSpace, known: Mapping[int, dict[str, Any]]) -> Iterator[_Trial]:
        """Yield number and values of each trial of a search, those of earlier sessions first."""
        self._continue(space, sorted(known.items()))
        yield from sorted(known.items())
        for number in itertools.count(len(known)):
            assert self._search is not None
            values = self._search.ask(number)
            if values is None:
                return
            yield number, values

    def _continue(self, space: SearchSpace, known: Sequence[_Trial]) -> None:
        """Begin a search that knows the trials of earlier sessions.

        If they ran one at a time, the same seed draws them again, and then what would have
        followed. The order in which trials side by side ended is not known, so others follow.
        """
        seed = self._plan.base.seed
        self._search = OptunaSearch(space, seed)
        for number, values in known:
            if self._search.ask(number) != values:
                break
            self._tell(number)
        else:
            return
        self._search = OptunaSearch(space, seed + len(known))
        for number, values in known:
            self._search.ask(number, values)
            self._tell(number)

    def _run(
        self,
        waiting: Iterator[_Trial],
        interrupts: Interrupts,
        on_progress: Callable[[str], None],
    ) -> None:
        """Run one trial on each share of the cores.

        A trial whose machine is lost continues on another share.
        """
        said_s = -math.inf
        try:
            while True:
                is_stopping = interrupts.requested is not None
                if not is_stopping:
                    self._fill(waiting)
                if not self._running:
                    return
                if time.monotonic() - said_s >= _SAY_S:
                    said_s = time.monotonic()
                    on_progress("saving all trials …" if is_stopping else self._progress())
                time.sleep(_POLL_S)
                for trial in list(self._running):
                    if is_stopping:
                        trial.process.stop()
                    if trial.process.ended:
                        self._running.remove(trial)
                        self._finish(trial, is_stopping)
                    elif self._falls_behind(trial):
                        trial.is_pruned = True
                        trial.process.stop()
        finally:
            for trial in self._running:
                trial.process.kill()

    def _progress(self) -> str:
        """Return one line with the number of ended trials, and the progress of the others."""
        done = sorted(_last_steps(self._path(t.number)) / t.total_steps for t in self._running)
        # The last rollout may exceed the steps.
        ends = dict.fromkeys(f"{min(1.0, share):.0%}" for share in (done[0], done[-1]))
        return (
            f"training: {len(self._results)} of {self._count} trials have ended, "
            f"{len(self._running)} running, {' to '.join(ends)} of the steps done"
        )

    def _fill(self, waiting: Iterator[_Trial]) -> None:
        """Start trials on all free shares.

        Raises:
            WorkerError: All machines are lost, but there are trials to run.
        """
        while self._free:
            new = self._lost.pop() if self._lost else next(waiting, None)
            if new is None:
                return
            trial = self._started(*new, self._free[-1])
            if trial is None:
                self._tell(new[0])
            else:
                self._free.pop()
                self._running.append(trial)
        if not self._running:
            raise WorkerError("cluster", "no machine is left; the same command continues the sweep")

    def _started(self, number: int, values: dict[str, Any], start: Start) -> _Running | None:
        """Start or resume a trial; return None if that fails."""
        path = self._path(number)
        self._note(trial=number, values=values)
        try:
            config = self._plan.config(values)
            code = packed(config)
            if (path / "config.yaml").is_file():
                arguments = ["resume", str(path)]
            else:
                changes = [*self._plan.changes(values), *self._pins.of(config)]
                file = [str(self._plan.path)] if self._plan.path else []
                arguments = ["train", *file, *changes, f"run_dir={json.dumps(str(path))}"]
        except FastrlError as error:
            self._end(TrialResult(number, values, path, "failed", str(error)))
            return None
        process = start(arguments, path.with_suffix(".log"), code)
        return _Running(number, values, config.total_steps, start, process)

    def _finish(self, trial: _Running, is_stopped: bool) -> None:
        """Record the end of a trial, or put it back to run again."""
        if trial.process.is_lost and not is_stopped:
            _LOGGER.warning("trial %d is started again: %s", trial.number, trial.process.problem())
            self._lost.append((trial.number, trial.values))
            return
        self._free.append(trial.start)
        path = self._path(trial.number)
        end: tuple[State, str] = ("failed", trial.process.problem())
        if trial.is_pruned or is_stopped:
            end = ("pruned" if trial.is_pruned else "stopped", "")
        result = read_result(trial.number, trial.values, path, self._metric, end)
        assert result is not None
        self._end(result)
        self._tell(trial.number)

    def _end(self, result: TrialResult) -> None:
        self._results[result.number] = result
        self._note(trial=result.number, state=result.state, error=result.error, score=result.score)
        self._on_end(result)

    def _tell(self, number: int) -> None:
        """Report a trial that has ended to the search."""
        result = self._results.get(number)
        if self._search is not None and result is not None and result.state != "stopped":
            self._search.report(number, self._reports(number))
            score = result.score if result.state == "finished" else None
            self._search.tell(number, score, pruned=result.state == "pruned")

    def _falls_behind(self, trial: _Running) -> bool:
        """Report new values of a running trial; return whether it is pruned."""
        size = trial.metrics_bytes
        with suppress(OSError):
            size = (self._path(trial.number) / "metrics.jsonl").stat().st_size
        if self._search is None or trial.is_pruned or size == trial.metrics_bytes:
            return False
        trial.metrics_bytes = size
        return self._search.report(trial.number, self._reports(trial.number))

    def _reports(self, number: int) -> list[tuple[int, float]]:
        """Return the intermediate values of a trial, of evaluations or else of training."""
        kind = "evaluation" if self._plan.base.evaluation.enabled else "training"
        return training_values(self._path(number), self._metric, kind)


def _rows(log: Path) -> list[dict[str, Any]]:
    """Return the complete rows of a sweep's file; end an incomplete row after a crash."""
    with writing(log, ConfigError):
        content = read_bounded(log) if log.exists() else b""
        if content and not content.endswith(b"\n"):
            with log.open("ab") as file:
                file.write(b"\n")
    return [row for line in content.split(b"\n") if (row := object_of(line)) is not None]


def _last_steps(run: Path) -> int:
    """Return the steps in the last row of a run's metrics; 0 before the first."""
    with suppress(OSError):
        rows = [row for line in last_lines(run / "metrics.jsonl") if (row := row_of(line))]
        return int(rows[-1]["steps"]) if rows else 0
    return 0


def _difference(row: Mapping[str, Any], plan: SweepPlan) -> str:
    """Describe the difference between the sweep of a file and a plan."""
    before, now = row.get("sweep"), plan.identity()
    if not isinstance(before, dict):
        return ""
    found = [name for name in now if before.get(name) != now[name]]
    return f": its {' and '.join(found)} differ" if found else ""
