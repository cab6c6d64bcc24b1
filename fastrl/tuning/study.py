"""Keeps trials in an Optuna study, a SQLite file that Optuna's own tools can show.

One Optuna trial is one visit: its parameters are the candidate's numbers, its value the frames
per second, its user attributes the rest. A search that was stopped goes on from there.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError, SQLAlchemyError

from fastrl.closing import Closing
from fastrl.errors import ConfigError
from fastrl.tuning.candidate import Candidate
from fastrl.tuning.trials import Trial

_LARGEST = 2**31 - 1
_ATTRIBUTES = ("seconds", "reference_fps", "cost_s", "error", "exhausted", "notes")
_WANTED = {*_ATTRIBUTES, "reference", "texts"}
"""What a trial must say to be one of a search's."""
_FAILURES = (OptunaError, SQLAlchemyError, sqlite3.Error, RuntimeError, ValueError, LookupError)
"""What Optuna raises where a file is locked, full, damaged or something else."""

_MAKING_S, _PAUSE_S = 10.0, 0.2
"""Making the tables takes half a second, and longer on a busy machine."""


class StudyJournal(Closing):
    """A journal in a SQLite file.

    Args:
        path: The file; made if it is not there.
        name: Of the study in it: what must be equal for trials to be worth keeping.
        fresh: Forget the trials of that study.

    Raises:
        ConfigError: The file cannot be opened, or is no Optuna storage.
    """

    def __init__(self, path: Path, name: str, *, fresh: bool = False) -> None:
        # Optuna tells of every trial on standard error, and warns of what is experimental.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.path = path
        with self._told("used as a study"):
            self._storage = _opened(path)
            if fresh and name in optuna.get_all_study_names(self._storage):
                optuna.delete_study(study_name=name, storage=self._storage)
            self._study = optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
            )

    def recorded(self) -> list[Trial]:
        """Return all trials so far; those that other programs have added are left out.

        Raises:
            ConfigError: The file cannot be read.
        """
        with self._told("read"):
            frozen = self._study.get_trials(deepcopy=False)
        found = (_thawed(trial) for trial in frozen if trial.user_attrs.keys() >= _WANTED)
        return [trial for trial in found if trial is not None]

    def add(self, trial: Trial) -> None:
        """Keep a trial; it is on disk when this returns.

        Raises:
            ConfigError: The file cannot be written.
        """
        with self._told("written"):
            self._study.add_trial(_frozen(trial))

    @property
    def result(self) -> Candidate | None:
        """What the latest search that has ended has found, None before."""
        found = self._noted("best")
        return None if found is None else _candidate(found)

    @property
    def enough_s(self) -> float:
        """The largest budget with which the result is final."""
        found = self._noted("enough_s")
        return float(found) if isinstance(found, int | float) else 0.0

    def keep_result(self, best: Candidate, enough_s: float) -> None:
        """Keep what a search has found.

        Args:
            best: The choice.
            enough_s: The budget that it was found with; infinite where more would change nothing.

        Raises:
            ConfigError: The file cannot be written.
        """
        with self._told("written"):
            self._study.set_user_attr("best", best.to_dict())
            self._study.set_user_attr("enough_s", enough_s)

    def close(self) -> None:
        """Let go of the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _noted(self, name: str) -> Any:  # noqa: ANN401
        with self._told("read"):
            return self._study.user_attrs.get(name)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Say in one line that the file cannot be ``what``."""
        try:
            yield
        except _FAILURES as error:
            # Optuna says only where to look for the reason.
            reason = error.__cause__ if isinstance(error, OptunaError) else error
            told = " ".join(str(reason or error).split())[:200]
            raise ConfigError(f"{self.path} cannot be {what}: {told}") from error


class StudyCache(Closing):
    """A journal that does without its file where that cannot be opened, read or written.

    What it does not keep is measured again.

    Args:
        opened: Returns the study, or raises `ConfigError`.
        say: Called once with the reason why something is not kept.
    """

    def __init__(self, opened: Callable[[], StudyJournal], say: Callable[[str], None]) -> None:
        self._say, self._has_said = say, False
        self._journal: StudyJournal | None = None
        with self._guarded():
            self._journal = opened()

    def recorded(self) -> list[Trial]:
        """Return all trials so far, as far as the file can be read."""
        with self._guarded():
            return [] if self._journal is None else self._journal.recorded()
        return []

    def add(self, trial: Trial) -> None:
        """Keep a trial where that is possible."""
        with self._guarded():
            if self._journal is not None:
                self._journal.add(trial)

    def result_of(self, budget_s: float) -> Candidate | None:
        """Return what an earlier search with as large a budget has found, None where none has."""
        with self._guarded():
            if self._journal is not None and budget_s <= self._journal.enough_s:
                return self._journal.result
        return None

    def keep_result(self, best: Candidate, enough_s: float) -> None:
        """Keep what a search has found where that is possible; see `StudyJournal.keep_result`."""
        with self._guarded():
            if self._journal is not None:
                self._journal.keep_result(best, enough_s)

    def close(self) -> None:
        """Let go of the file."""
        if self._journal is not None:
            self._journal.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            if not self._has_said:
                self._has_said = True
                self._say(f"what is measured is not kept: {error}")


def undamaged_study(path: Path, name: str, *, fresh: bool = False) -> StudyJournal:
    """Open a study; a damaged file of the same name is set aside as ``….damaged`` before.

    Raises:
        ConfigError: See `StudyJournal`.
    """
    try:
        journal = StudyJournal(path, name, fresh=fresh)
        try:
            journal.recorded()
        except ConfigError:
            journal.close()
            raise
        return journal
    except ConfigError as error:
        if not _is_damage(error):
            raise
        try:
            path.replace(path.with_suffix(".damaged"))
            path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
        except OSError:
            raise error from None
    return StudyJournal(path, name, fresh=fresh)


def _is_damage(error: BaseException | None) -> bool:
    """Return whether SQLite has found bytes that it has not written."""
    while error is not None and type(error) is not DatabaseError:
        error = error.__cause__
    return error is not None


def _opened(path: Path) -> RDBStorage:
    """Open a file, or make it; again if another process is making it at this moment."""
    deadline_s = time.monotonic() + _MAKING_S
    while True:
        try:
            return RDBStorage(f"sqlite:///{path}")
        except (IntegrityError, OperationalError):
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_PAUSE_S)


def _frozen(trial: Trial) -> FrozenTrial:
    reference = trial.reference
    attributes = {name: getattr(trial, name) for name in _ATTRIBUTES}
    attributes["notes"] = dict(trial.notes)
    attributes["reference"] = None if reference is None else reference.to_dict()
    found = trial.candidate.to_dict()
    # Optuna wants to know all values of a text beforehand, so texts are attributes.
    parameters = {name: value for name, value in found.items() if isinstance(value, int)}
    attributes["texts"] = {name: value for name, value in found.items() if name not in parameters}
    return create_trial(
        state=TrialState.FAIL if trial.fps is None else TrialState.COMPLETE,
        value=trial.fps,
        params=parameters,
        distributions={name: IntDistribution(0, _LARGEST) for name in parameters},
        user_attrs=attributes,
    )


def _candidate(found: Any) -> Candidate | None:  # noqa: ANN401
    """Return what `Candidate.to_dict` has written; None for anything else."""
    try:
        return Candidate.from_dict(found)
    except (AttributeError, TypeError, ConfigError):
        return None


def _thawed(frozen: FrozenTrial) -> Trial | None:
    """Return a trial; None where another program has written something else."""
    attributes = frozen.user_attrs
    texts, kept = attributes["texts"], attributes["reference"]
    candidate = _candidate({**frozen.params, **texts} if isinstance(texts, dict) else None)
    reference = None if kept is None else _candidate(kept)
    if candidate is None or (kept is not None and reference is None):
        return None
    return Trial(
        candidate=candidate,
        reference=reference,
        fps=frozen.value,
        **{name: attributes[name] for name in _ATTRIBUTES},
    )
