"""What is written down and shown while a run goes on."""

from __future__ import annotations

from collections.abc import Callable

from fastrl.config import Config
from fastrl.sampling import Fault, Sampler
from fastrl.training.evaluation import INFO, EvaluationResult
from fastrl.training.fault_log import FaultLog
from fastrl.training.metrics import MetricsLog
from fastrl.training.progress import Progress
from fastrl.training.remarks import LearningSigns
from fastrl.training.window import Update, Window

FINAL = "final_evaluation"
"""Kind of the row of the evaluation after the last step, whose episodes are others."""

_ROWS_PER_RUN = 200


class Journal:
    """Turns updates and evaluations into rows of metrics, for the files and for the eye.

    Attributes:
        window: What happened since the last row.

    Args:
        config: Says how often there is a row.
        log: Where rows are written.
        progress: Where they are shown.
        window: Opened now.
        faults: Where workers that failed are written down.
        signs: Which rows of metrics are reported as a sign that nothing is learnt.
    """

    def __init__(
        self,
        config: Config,
        log: MetricsLog,
        progress: Progress,
        window: Window,
        faults: FaultLog,
        signs: LearningSigns,
    ) -> None:
        self._log, self._progress, self.window, self._faults = log, progress, window, faults
        self._signs = signs
        self._every_s = config.logging.every_s
        every_steps = config.logging.every_steps
        self._every_steps = every_steps or max(1, config.total_steps // _ROWS_PER_RUN)
        self._idle: IdleTime | None = None

    def watch(self, idle: IdleTime | None) -> None:
        """Take over the sampler's own account of its time; see `Window.row`."""
        self._idle = idle

    def note_update(self, update: Update) -> None:
        """Count an update in."""
        self.window.add(update)
        self._progress.advance(update.steps)

    def flush_if_due(self) -> None:
        """Write a row if one is due."""
        if self.window.steps >= self._every_steps or self.window.open_s >= self._every_s:
            self.flush()

    def flush(self) -> None:
        """Write a row of what happened since the last one, if anything did."""
        if self.window.steps:
            row = self.window.row(self._idle.since_last() if self._idle else None)
            row["restarts"] = self._faults.count
            self._log.write("training", row)
            self._progress.show(row)
            for sign in self._signs.look(row):
                self._progress.remark(sign)

    def note_fault(self, fault: Fault) -> None:
        """Write down that a worker failed and is replaced."""
        self._faults.write(fault)
        self._progress.remark(str(fault))

    def note_evaluation(
        self, result: EvaluationResult, steps: int, kind: str = "evaluation"
    ) -> None:
        """Write down how the policy did as it was after ``steps``, in a row of that kind."""
        row = {
            "steps": steps,
            "return_mean": result.return_mean,
            "return_std": result.return_std,
            "length_mean": result.length_mean,
            "episodes": len(result.returns),
            "cut": result.cut,
            **{f"{INFO}{name}": mean for name, mean in result.info_means().items()},
        }
        self._log.write(kind, row)
        self._progress.show_evaluation(result, steps)

    def watch_start(self, starting: Callable[[], str]) -> None:
        """Show until the first update how far the start is, which ``starting`` returns in words."""
        self._progress.watch_start(starting)

    def watch_evaluation(self, line: str) -> None:
        """Show how far an evaluation is that training waits for."""
        self._progress.update(line)

    def remark(self, line: str) -> None:
        """Show a line that stays to be read."""
        self._progress.remark(line)

    def say(self, activity: str) -> None:
        """Show what is done besides training."""
        self._progress.say(activity)


class IdleTime:
    """How long the workers of an asynchronous sampler did not sample.

    Where model workers infer, waiting for actions and waiting for the learner are counted
    together, and none of it is taken for idle.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._last_ns = self._waited_ns()

    def since_last(self) -> float:
        """Return the mean over the workers, in seconds, since the last call."""
        if self._sampler.topology.num_model_workers:
            return 0.0
        waited_ns = self._waited_ns()
        since_ns, self._last_ns = waited_ns - self._last_ns, waited_ns
        return since_ns / 1e9

    def _waited_ns(self) -> float:
        return float(self._sampler.stats().waiting_ns.mean())
