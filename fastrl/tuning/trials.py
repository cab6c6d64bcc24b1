"""What the tuner has measured, and where it is kept."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fastrl.errors import FastrlError
from fastrl.tuning.candidate import Candidate


class TrialError(FastrlError):
    """A candidate cannot be measured: it crashed, or needs more memory or time than there is.

    Attributes:
        exhausted: Whether more environments can only make it worse: memory or time ran out.
        limit_s: The time that ran out, None where it was something else.
    """

    def __init__(
        self, message: str, *, exhausted: bool = False, limit_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.exhausted, self.limit_s = exhausted, limit_s


@dataclass(frozen=True)
class Sample:
    """One window of sampling.

    Attributes:
        fps: Frames per second.
        notes: What else was seen, as plain JSON types.
    """

    fps: float
    notes: Mapping[str, Any] = field(default_factory=dict)


class Measure(Protocol):
    """Samples as a candidate says, for about so many seconds."""

    def __call__(self, candidate: Candidate, seconds: float) -> Sample:
        """Return how fast it was.

        Raises:
            Exception: Whatever goes wrong counts against the candidate.
        """
        ...


_TURN_S = 0.2
"""Length of a turn, roughly: a core may change its speed by a factor of 1.6 within a second, but
changing turns takes time, too."""


_LIMIT_NOTE = "limit_s"
"""Note of a trial that was given up, after so many seconds."""


@dataclass(frozen=True)
class Attempt:
    """One window of a candidate, or why there is none.

    Attributes:
        fps: Frames per second; 0 where there is no window.
        notes: See `Sample`.
        error: Why it failed; empty where it did not.
        exhausted: See `TrialError`.
    """

    fps: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    exhausted: bool = False


def attempt_beside(
    measure: Measure, candidate: Candidate, reference: Candidate | None, seconds: float
) -> tuple[Attempt, Attempt]:
    """Measure a candidate beside a reference, if there is one, in short turns, each for so long.

    The reference begins and ends with half a turn, so that a steady drift cancels. Whoever fails
    ends it.

    Returns:
        The candidate's window and the reference's.
    """
    if reference is None:
        return attempt(measure, candidate, seconds), Attempt()
    turns = max(1, round(seconds / _TURN_S))
    before = attempt(measure, reference, seconds / turns / 2)
    if before.error:
        return attempt(measure, candidate, seconds), before
    own_fps, reference_fps = 0.0, before.fps / 2
    for left in reversed(range(turns)):
        share = 1.0 if left else 0.5
        own = attempt(measure, candidate, seconds / turns)
        after = attempt(measure, None if own.error else reference, share * seconds / turns)
        if own.error or after.error:
            return own, after
        own_fps += own.fps
        reference_fps += share * after.fps
    return replace(own, fps=own_fps / turns), replace(after, fps=reference_fps / turns)


def attempt(measure: Measure, candidate: Candidate | None, seconds: float) -> Attempt:
    """Measure a candidate for so long; nothing where there is none."""
    if candidate is None:
        return Attempt()
    try:
        sample = measure(candidate, seconds)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        limit_s = getattr(error, "limit_s", None)
        notes = {} if limit_s is None else {_LIMIT_NOTE: limit_s}
        return Attempt(notes=notes, error=reason, exhausted=_is_exhausted(error))
    if sample.fps <= 0:
        return Attempt(error="it made no step")
    return Attempt(sample.fps, sample.notes)


def _is_exhausted(error: Exception) -> bool:
    return getattr(error, "exhausted", False) or isinstance(error, MemoryError | TimeoutError)


@dataclass(frozen=True)
class Trial:
    """One visit to a candidate: a window of it, and beside it one of the best so far.

    Attributes:
        candidate: What was visited.
        reference: What it was compared with; None where it was measured alone.
        seconds: Length of the windows.
        fps: Of the candidate; None where it failed.
        reference_fps: Of the reference.
        cost_s: Wall time that the trial took, starting processes included.
        error: Why it failed, or what it was compared with did; empty where neither did.
        exhausted: See `TrialError`.
        notes: What else was seen of the candidate.
    """

    candidate: Candidate
    reference: Candidate | None
    seconds: float
    fps: float | None
    reference_fps: float | None = None
    cost_s: float = 0.0
    error: str = ""
    exhausted: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[Candidate, Candidate | None, float]:
        """What was asked, without what came of it."""
        return self.candidate, self.reference, self.seconds


def number_in(notes: Mapping[str, Any], name: str, otherwise: float) -> float:
    """Return a number of a trial's notes, which another program may have written."""
    found = notes.get(name)
    try:
        return float(found) if isinstance(found, int | float) else otherwise
    except OverflowError:
        return otherwise


class Journal(Protocol):
    """Keeps trials, so that a search that was stopped goes on without measuring twice."""

    def recorded(self) -> list[Trial]:
        """Return the trials of earlier searches, oldest first."""
        ...

    def add(self, trial: Trial) -> None:
        """Keep a trial."""
        ...


class MemoryJournal:
    """A journal that ends with the process."""

    def __init__(self, trials: Iterable[Trial] = ()) -> None:
        self.trials = list(trials)

    def recorded(self) -> list[Trial]:
        """Return all trials so far."""
        return list(self.trials)

    def add(self, trial: Trial) -> None:
        """Keep a trial."""
        self.trials.append(trial)


class Replay:
    """Hands out recorded trials to a search that asks the same questions again.

    Args:
        trials: Oldest first; of equal questions the oldest answer comes first. Where none has
            succeeded, whatever was wrong may not be any more: then there are no answers. Nor is a
            failure one if the same question was answered later.
        limit_s: Trials that were given up after less are not answers either.
    """

    def __init__(self, trials: Iterable[Trial], limit_s: float = 0.0) -> None:
        self._left: dict[Any, deque[Trial]] = defaultdict(deque)
        trials = [t for t in trials if not number_in(t.notes, _LIMIT_NOTE, math.inf) < limit_s]
        if all(trial.fps is None for trial in trials):
            return
        for trial in trials:
            answers = self._left[trial.key]
            if trial.fps is not None and all(answer.fps is None for answer in answers):
                answers.clear()
            answers.append(trial)

    def take(self, key: tuple[Candidate, Candidate | None, float]) -> Trial | None:
        """Return the next recorded answer to a question, None where there is none left."""
        answers = self._left.get(key)
        return answers.popleft() if answers else None
