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
from fastrl.tuning.candidate import Candidate
from fastrl.tuning.explain import find_bottleneck, time_shares
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
        """The limit of the pair with the median FPS / limit."""
        return self._limit_pair[0] if self._limit_pair else None

    @property
    def fps_beside_limit(self) -> float | None:
        """Frames per second of the best in the same pair, so right after `limit_fps`."""
        return self._limit_pair[1] if self._limit_pair else None

    @property
    def efficiency(self) -> float | None:
        """`fps_beside_limit` / `limit_fps`."""
        return self._limit_pair[1] / self._limit_pair[0] if self._limit_pair else None

    @property
    def _limit_pair(self) -> tuple[float, float] | None:
        pairs = sorted(((limit.fps, fps) for limit, fps in self.limits), key=lambda p: p[1] / p[0])
        return pairs[(len(pairs) - 1) // 2] if pairs else None

    def ranking(self) -> list[tuple[Candidate, float]]:
        """Return the candidates that never failed, with `Finding.ratios`: the best, then by speed.

        A candidate that lost its race may still have the larger ratio, by less than the noise or
        by less than its size costs.
        """
        found = self.finding
        failed = {trial.candidate for trial in found.trials if trial.fps is None} - {found.best}
        ranked = [(c, ratio) for c, ratio in found.ratios().items() if c not in failed]
        return sorted(ranked, key=lambda item: (item[0] != found.best, -item[1]))

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
            "gain": found.gain,
            "limit_fps": self.limit_fps,
            "fps_beside_limit": self.fps_beside_limit,
            "efficiency": self.efficiency,
            "bottleneck": None if bottleneck is None else str(bottleneck),
            "ended": found.ended,
            "path": [candidate.to_dict() for candidate in found.path],
            "ranking": [
                {**candidate.to_dict(), "ratio": ratio} for candidate, ratio in self.ranking()
            ],
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
            "time_shares": time_shares(self._notes()) or None,
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
            "frames per second ": self._default_spread(),
        }
        if found.gain is not None and found.best != found.default:
            rows["gain"] = f"{found.gain:.2f} ×"
        if self.limit_fps and self.efficiency:
            rows["limit"] = (
                f"{self.limit_fps:,.0f}; right after it the best made "
                f"{self.fps_beside_limit:,.0f}, {self.efficiency:.1%} of it"
            )
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

    def _default_spread(self) -> str:
        found = self.finding
        if found.default_fps:
            return _spread(found.default_fps)
        has_failed = any(t.candidate == found.default and t.fps is None for t in found.trials)
        return "failed" if has_failed else "not compared with the best at the end"

    @property
    def base_name(self) -> str:
        """What `Finding.ratios` are relative to: the default unless it failed."""
        base = self.finding.path[0]
        return "the default" if base == self.finding.default else base.label

    def _candidates(self) -> Table:
        """Return the fastest candidates, by what they were compared with, see `Finding.ratios`."""
        found, ranked = self.finding, self.ranking()
        table = Table(title="Fastest trials", title_justify="left")
        table.add_column("candidate")
        table.add_column(f"times {self.base_name}", justify="right")
        table.add_column("")
        for candidate, ratio in ranked[:_LISTED]:
            remarks = {"best": candidate == found.best, "default": candidate == found.default}
            told = ", ".join(remark for remark, holds in remarks.items() if holds)
            if ratio > ranked[0][1]:
                told = told or "not clearly faster"
            table.add_row(candidate.label, f"{ratio:.2f}", told)
        return table


def _spread(fps: tuple[float, ...]) -> str:
    return f"{np.median(fps):,.0f}  ({min(fps):,.0f} … {max(fps):,.0f} over {len(fps)} windows)"
