"""The study of a tuning: its trials in a file of JSON lines, from which it can continue."""

from __future__ import annotations

import json
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastrl.durable import read_bounded
from fastrl.errors import ConfigError, FastrlError, one_line
from fastrl.tuning.space import Candidate

_TURN_S = 0.2
"""Approximate seconds of a turn: a core's speed may change by a factor of 1.6 within a second, but
changing turns takes time."""

_Fps = Annotated[float, Field(gt=1e-9, lt=1e15)]
_Seconds = Annotated[float, Field(ge=0, lt=1e9)]
_Share = Annotated[float, Field(ge=0, le=1)]
Question = tuple[Candidate, Candidate | None, float]
"""A candidate, the reference beside it, and the seconds of the window."""


class TrialError(FastrlError):
    """A candidate cannot be measured.

    Attributes:
        exhausted: Whether memory or time ran out, so that more environments would fail as well.
        limit_s: The time that ran out; None for other causes.
    """

    def __init__(
        self, message: str, *, exhausted: bool = False, limit_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.exhausted, self.limit_s = exhausted, limit_s


@dataclass(frozen=True)
class Notes:
    """Details of a window."""

    seen_fps: _Fps | None = None  # before the correction for resets
    shares: dict[str, dict[str, _Share]] = field(default_factory=dict)  # by kind of worker
    learner_share: _Share = 0.0  # of the time


@dataclass(frozen=True)
class Sample:
    """One window of sampling: its frames per second, and details."""

    fps: float
    notes: Notes = field(default_factory=Notes)


Measure = Callable[[Candidate, float], Sample]
"""A function that samples with a candidate for some seconds; an exception is its failure."""


@dataclass(frozen=True)
class Trial:
    """One window of a candidate, and beside it one of the best so far, the reference.

    Attributes:
        reference: Reference candidate; None if the candidate was measured alone.
        seconds: Length of each of the two windows.
        fps: Frames per second of the candidate; None if it failed.
        reference_fps: Frames per second of the reference; None if either failed.
        cost_s: Wall time in seconds, including the start of the candidate.
        error: Reason of a failure; empty without one.
        exhausted: See `TrialError`, also for ``limit_s``.
        notes: Details of the candidate's last turn.
    """

    candidate: Candidate
    reference: Candidate | None
    seconds: Annotated[float, Field(gt=0, lt=1e9)]
    fps: _Fps | None
    reference_fps: _Fps | None = None
    cost_s: _Seconds = 0.0
    error: str = ""
    exhausted: bool = False
    limit_s: _Seconds | None = None
    notes: Notes = field(default_factory=Notes)


def visit(
    measure: Measure, candidate: Candidate, reference: Candidate | None, seconds: float
) -> Trial:
    """Measure a candidate and the reference, if there is one, in short turns.

    The reference has half a turn first and half a turn last, so that a steady drift cancels. The
    first failure of either ends the trial.
    """
    if reference is None:
        return _window(measure, candidate, seconds)
    turns = max(1, round(seconds / _TURN_S))
    beside = _window(measure, reference, seconds / turns / 2)
    if beside.fps is None:
        return _failed(_window(measure, candidate, seconds), beside, seconds)
    fps, reference_fps = 0.0, beside.fps / 2
    for share in (*[1.0] * (turns - 1), 0.5):
        own = _window(measure, candidate, seconds / turns)
        if own.fps is not None:
            beside = _window(measure, reference, share * seconds / turns)
        if own.fps is None or beside.fps is None:
            return _failed(own, beside, seconds)
        fps += own.fps
        reference_fps += share * beside.fps
    fps, reference_fps = fps / turns, reference_fps / turns
    return Trial(candidate, reference, seconds, fps, reference_fps, notes=own.notes)


def _window(measure: Measure, candidate: Candidate, seconds: float) -> Trial:
    """Measure a candidate alone."""
    trial = Trial(candidate, None, seconds, fps=None, error="it made no step")
    try:
        sample = measure(candidate, seconds)
    except Exception as error:
        return replace(
            trial,
            error=one_line(error, None) or type(error).__name__,
            exhausted=getattr(error, "exhausted", isinstance(error, MemoryError | TimeoutError)),
            limit_s=getattr(error, "limit_s", None),
        )
    return replace(trial, fps=sample.fps, error="", notes=sample.notes) if sample.fps > 0 else trial


def _failed(own: Trial, beside: Trial, seconds: float) -> Trial:
    """Return the trial of two windows if one failed."""
    error = own.error or f"beside it, {beside.error}"
    return replace(own, reference=beside.candidate, seconds=seconds, error=error)


@dataclass(frozen=True)
class Result:
    """The result of a completed search.

    Attributes:
        enough_s: Largest budget for which it is final; None if more time changes nothing.
    """

    best: Candidate
    enough_s: Annotated[float, Field(ge=0)] | None


class _Line(BaseModel):
    """One line of a file: a trial, a result, or a mark that all lines before it are void."""

    model_config = ConfigDict(extra="forbid", strict=True)

    study: str
    trial: Trial | None = None
    result: Result | None = None
    fresh: bool = False


class Study:
    """The trials under one name, oldest first, and the result of the latest completed search.

    A file may hold several studies. Damaged lines are skipped.

    Args:
        path: The file; None for a study in memory.
        name: Name of the study, equal for comparable trials.
        fresh: Discard the earlier trials of that name.
        say: Called with the reason if the file cannot be read or written; the study then
            continues in memory. By default a `ConfigError` is raised.
    """

    def __init__(
        self,
        path: Path | None = None,
        name: str = "",
        *,
        fresh: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.trials: list[Trial] = []
        self.result: Result | None = None
        self._path, self._name, self._say = path, name, say
        if path is not None:
            with self._reporting("read"):
                self._read(path)
        if fresh:
            self.trials, self.result = [], None
            self._write(fresh=True)

    def add(self, trial: Trial) -> None:
        """Write a trial to the disk."""
        self.trials.append(trial)
        self._write(trial=trial)

    def keep_result(self, result: Result) -> None:
        """Write the result of a search."""
        self.result = result
        self._write(result=result)

    def answers(self, limit_s: float) -> Mapping[Question, deque[Trial]]:
        """Return the recorded trials by question, oldest first, for a repeated search.

        There are none if no trial succeeded, as its cause may have been removed. Failures before a
        success of the same question are skipped, and so are trials with a time limit below
        ``limit_s`` that ran out.
        """
        found: dict[Question, deque[Trial]] = defaultdict(deque)
        trials = [t for t in self.trials if t.limit_s is None or t.limit_s >= limit_s]
        for trial in trials if any(t.fps is not None for t in trials) else ():
            answers = found[trial.candidate, trial.reference, trial.seconds]
            if trial.fps is not None and all(answer.fps is None for answer in answers):
                answers.clear()
            answers.append(trial)
        return found

    def _read(self, path: Path) -> None:
        content = read_bounded(path) if path.exists() else b""
        lines = [line for line in map(_parsed, content.split(b"\n")) if line is not None]
        if content.strip() and not lines and self._say is None:
            raise ConfigError(f"{path} is not a study: name another file")
        for line in (line for line in lines if line.study == self._name):
            if line.fresh:
                self.trials, self.result = [], None
            self.trials += [line.trial] if line.trial is not None else []
            self.result = line.result or self.result
        if content and not content.endswith(b"\n"):
            _append(path, b"\n")

    def _write(self, **what: Any) -> None:
        if self._path is not None:
            # As ASCII, since the error of an environment may not be valid text.
            line = json.dumps(_Line(study=self._name, **what).model_dump(exclude_defaults=True))
            with self._reporting("written"):
                _append(self._path, f"{line}\n".encode())

    @contextmanager
    def _reporting(self, action: str) -> Iterator[None]:
        """Raise or report in one line that the file cannot be used."""
        try:
            yield
        except OSError as error:
            problem = f"{self._path} cannot be {action}: {error.strerror or error}"
            if self._say is None:
                raise ConfigError(problem) from error
            self._path = None
            self._say(f"trials are not kept: {problem}")


def cached_study(name: str, say: Callable[[str], None], *, fresh: bool = False) -> Study:
    """Return a `Study` in the user's cache directory; in memory if there is no such directory."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(cache) / "fastrl"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # an account may have no home directory
        say(f"trials are not kept: {error}")
        return Study()
    return Study(directory / "tuning.jsonl", name, fresh=fresh, say=say)


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _parsed(line: bytes) -> _Line | None:
    """Return the content of a line; None if it is damaged or blank."""
    try:
        return _Line.model_validate_json(line)
    except (ValidationError, ConfigError):
        return None
