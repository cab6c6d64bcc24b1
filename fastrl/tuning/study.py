"""Keeps trials in an Optuna study, a SQLite file that Optuna's own tools can show.

One Optuna trial is one visit: its parameters are the candidate's numbers, its value the frames
per second, its user attributes the rest. A search that was stopped goes on from there.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import optuna
from optuna.distributions import IntDistribution
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError, SQLAlchemyError

from fastrl.closing import Closing
from fastrl.errors import ConfigError
from fastrl.tuning.candidate import Candidate
from fastrl.tuning.trials import Trial

_LARGEST = 2**31 - 1
_ATTRIBUTES = ("seconds", "reference_fps", "cost_s", "error", "exhausted", "notes")
_WANTED = {*_ATTRIBUTES, "reference", "texts"}
"""What a trial must say to be one of a search's."""
_FAILURES = (
    *(OptunaError, SQLAlchemyError, sqlite3.Error, RuntimeError, ValueError, LookupError),
    *(TypeError, AttributeError, AssertionError),
)
"""What Optuna raises where a file is locked, full, damaged or something else."""

_MAKING_S, _PAUSE_S = 10.0, 0.2
"""Making the tables takes half a second, and longer on a busy machine."""

_Count = Annotated[int, Field(ge=1)]
_Fps = Annotated[float, Field(gt=1e-9, lt=1e15)]
_Seconds = Annotated[float, Field(ge=0, lt=1e9)]


class _Shape(BaseModel):
    """What a file may hold; other programs, and a full disk, may have written something else."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _CandidateShape(_Shape):
    envs_per_worker: _Count
    num_env_workers: _Count
    num_model_workers: Annotated[int, Field(ge=0)]
    groups: _Count
    device: str
    engine: str
    torch_threads: _Count

    def candidate(self) -> Candidate:
        return Candidate(**self.model_dump())


class _TrialShape(_Shape):
    candidate: _CandidateShape
    reference: _CandidateShape | None
    seconds: Annotated[float, Field(gt=0, lt=1e9)]
    fps: _Fps | None
    reference_fps: _Fps | None
    cost_s: _Seconds
    error: str
    exhausted: bool
    notes: dict[str, Any]


class _ResultShape(_Shape):
    best: _CandidateShape
    enough_s: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True)
class Result:
    """What a search that has ended has found.

    Attributes:
        best: The choice.
        enough_s: The largest budget with which it is final; infinite where more time would change
            nothing.
    """

    best: Candidate
    enough_s: float


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
    def result(self) -> Result | None:
        """What the latest search that has ended has found, None before.

        Raises:
            ConfigError: The file cannot be read, or holds something else in its place.
        """
        with self._told("read"):
            found = self._study.user_attrs
            kept = {name: found[name] for name in _ResultShape.model_fields if name in found}
        if not kept:
            return None
        try:
            shape = _ResultShape.model_validate(kept)
        except ValidationError as error:
            raise ConfigError(f"{self.path} holds a damaged result") from error
        return Result(shape.best.candidate(), shape.enough_s)

    def keep_result(self, best: Candidate, enough_s: float) -> None:
        """Keep what a search has found.

        Args:
            best: The choice.
            enough_s: The budget that it was found with; infinite where more would change nothing.

        Raises:
            ConfigError: The file cannot be written.
        """
        with self._told("written"):
            # In this order, or a process that is killed leaves a budget beside another best.
            self._study.set_user_attr("enough_s", 0.0)
            self._study.set_user_attr("best", best.to_dict())
            self._study.set_user_attr("enough_s", enough_s)

    def close(self) -> None:
        """Let go of the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Say in one line that the file cannot be ``what``."""
        try:
            yield
        except _FAILURES as error:
            # Optuna says only where to look for the reason.
            reason = error.__cause__ if isinstance(error, OptunaError) else error
            # SQLAlchemy adds its query to what SQLite has said.
            reason = getattr(reason, "orig", None) or reason
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
        with self._guarded("what is measured is not kept: {}"):
            self._journal = opened()

    def recorded(self) -> list[Trial]:
        """Return all trials so far, as far as the file can be read."""
        with self._guarded("{}; its trials are not used"):
            return [] if self._journal is None else self._journal.recorded()
        return []

    def add(self, trial: Trial) -> None:
        """Keep a trial where that is possible."""
        with self._guarded("what is measured is not kept: {}"):
            if self._journal is not None:
                self._journal.add(trial)

    def result_of(
        self, budget_s: float, is_possible: Callable[[Candidate], bool]
    ) -> Candidate | None:
        """Return what an earlier search with as large a budget has found, None where none has.

        Args:
            budget_s: Of the search that would be made now.
            is_possible: Whether that search could find a candidate.
        """
        with self._guarded("{}; tuned anew"):
            kept = None if self._journal is None else self._journal.result
            if kept is None or budget_s > kept.enough_s:
                return None
            if is_possible(kept.best):
                return kept.best
            assert self._journal is not None
            what = "a result that is impossible for this configuration on this machine"
            raise ConfigError(f"{self._journal.path} holds {what}")
        return None

    def keep_result(self, best: Candidate, enough_s: float) -> None:
        """Keep what a search has found where that is possible; see `StudyJournal.keep_result`."""
        with self._guarded("what is measured is not kept: {}"):
            if self._journal is not None:
                self._journal.keep_result(best, enough_s)

    def close(self) -> None:
        """Let go of the file."""
        if self._journal is not None:
            self._journal.close()

    @contextmanager
    def _guarded(self, told: str) -> Iterator[None]:
        """Say what cannot be read or written, the first time, and go on."""
        try:
            yield
        except ConfigError as error:
            if not self._has_said:
                self._has_said = True
                self._say(told.format(error))


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


def _thawed(frozen: FrozenTrial) -> Trial | None:
    """Return a trial; None where another program has written something else."""
    attributes = frozen.user_attrs
    try:
        found = _TrialShape.model_validate(
            {
                **{name: attributes[name] for name in (*_ATTRIBUTES, "reference")},
                "candidate": {**frozen.params, **attributes["texts"]},
                "fps": frozen.value,
            }
        )
    except (ValidationError, TypeError):
        return None
    candidate, reference = found.candidate.candidate(), found.reference
    return Trial(
        candidate=candidate,
        reference=None if reference is None else reference.candidate(),
        fps=found.fps,
        **{name: getattr(found, name) for name in _ATTRIBUTES},
    )
