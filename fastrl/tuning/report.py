"""What a tuning has found, as JSON and as tables for people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from fastrl.machine import machine, versions
from fastrl.throughput.limits import Limit
from fastrl.tuning.explain import find_bottleneck
from fastrl.tuning.finding import Finding

_LISTED = 8


@dataclass(frozen=True)
class TuneReport:
    """One tuning.

    Attributes:
        env: Id of the environment.
        objective: ``fps`` or ``train_fps``.
        finding: What the search has found.
        limits: The physical limit, with the best's frames per second right after it; empty where
            it was not measured.
        wall_s: Time from the beginning to the end.
        command: The command line that repeats it.
    """

    env: str
    objective: str
    finding: Finding
    limits: tuple[tuple[Limit, float], ...] = ()
    wall_s: float = 0.0
    command: str = ""

    @property
    def limit_fps(self) -> float | None:
        """Median limit."""
        return float(np.median([limit.fps for limit, _ in self.limits])) if self.limits else None

    @property
    def efficiency(self) -> float | None:
        """Median over the pairs of FPS / limit."""
        if not self.limits:
            return None
        return float(np.median([fps / limit.fps for limit, fps in self.limits]))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        found = self.finding
        bottleneck = find_bottleneck(found.best, self._notes())
        return {
            "env": self.env,
            "objective": self.objective,
            "best": found.best.to_dict(),
            "default": found.default.to_dict(),
            "fps_median": found.fps_median,
            "fps": list(found.best_fps),
            "default_fps_median": found.default_fps_median,
            "default_fps": list(found.default_fps),
            "limit_fps": self.limit_fps,
            "efficiency": self.efficiency,
            "bottleneck": None if bottleneck is None else str(bottleneck),
            "ended": found.ended,
            "path": [candidate.to_dict() for candidate in found.path],
            "trials": [
                {
                    **trial.candidate.to_dict(),
                    "against": trial.reference.label if trial.reference else None,
                    "seconds": trial.seconds,
                    "fps": trial.fps,
                    "against_fps": trial.reference_fps,
                    "cost_s": trial.cost_s,
                    "error": trial.error,
                }
                for trial in found.trials
            ],
            "time_shares": self._notes().get("shares"),
            "wall_s": self.wall_s,
            "machine": machine(),
            "versions": versions(),
            "date": datetime.now(UTC).date().isoformat(),
            "command": self.command,
        }

    def to_rich(self) -> Group:
        """Return the tables that the command line prints."""
        return Group(self._summary(), self._candidates())

    def _notes(self) -> dict[str, Any]:
        """Return what was seen of the best when it was measured last."""
        seen = [t.notes for t in self.finding.trials if t.candidate == self.finding.best]
        return dict(next((notes for notes in reversed(seen) if notes), {}))

    def _summary(self) -> Table:
        found = self.finding
        what = "training" if self.objective == "train_fps" else "sampling"
        table = Table(title=f"Tuning of {what} {self.env}", title_justify="left", show_header=False)
        rows = {
            "best": found.best.label,
            "frames per second": _spread(found.best_fps),
            "default": found.default.label,
            "frames per second ": _spread(found.default_fps) if found.default_fps else "failed",
        }
        if found.default_fps and found.best != found.default:
            rows["gain"] = f"{found.fps_median / float(np.median(found.default_fps)):.2f} ×"
        if self.limit_fps and self.efficiency:
            rows["limit"] = f"{self.limit_fps:,.0f}, of which {self.efficiency:.1%} are reached"
        bottleneck = find_bottleneck(found.best, self._notes())
        if bottleneck is not None:
            rows["bottleneck"] = str(bottleneck)
        failed = sum(trial.fps is None for trial in found.trials)
        tried = len({trial.candidate for trial in found.trials})
        rows["search"] = (
            f"{tried} candidates, {len(found.trials)} trials"
            f"{f', {failed} failed' if failed else ''}, {found.spent_s:.0f} s; {found.ended}"
        )
        for label, value in rows.items():
            table.add_row(label, value)
        return table

    def _candidates(self) -> Table:
        """Return the fastest candidates, each against the one it was compared with."""
        table = Table(title="Fastest trials", title_justify="left")
        table.add_column("candidate")
        table.add_column("frames/s", justify="right")
        table.add_column("against")
        table.add_column("ratio", justify="right")
        measured = [t for t in self.finding.trials if t.fps and t.reference is not None]
        latest = {trial.candidate: trial for trial in measured}
        ranked = sorted(latest.values(), key=lambda t: -(t.fps or 0))
        for trial in ranked[:_LISTED]:
            ratio = (trial.fps or 0) / (trial.reference_fps or 1)
            against = trial.reference.label if trial.reference else ""
            table.add_row(trial.candidate.label, f"{trial.fps:,.0f}", against, f"{ratio:.2f}")
        return table


def _spread(fps: tuple[float, ...]) -> str:
    return f"{np.median(fps):,.0f}  ({min(fps):,.0f} … {max(fps):,.0f} over {len(fps)} windows)"
