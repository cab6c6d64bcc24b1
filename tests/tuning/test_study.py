"""Trials survive in a SQLite file, and Optuna itself can read them."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import optuna
import pytest
from tuner_bench import surfaces
from tuner_bench.surfaces import Trials

from fastrl.errors import ConfigError
from fastrl.tuning import Candidate, Search, Settings, Trial
from fastrl.tuning.study import StudyJournal

BEST = Candidate(64, 2, 1, 2, "cuda:0", "bfloat16", 2)
TRIALS = [
    Trial(Candidate(16, 2), None, 0.4, 1234.5678901234567, cost_s=0.1, notes={"start_s": 0.25}),
    Trial(BEST, Candidate(16, 2), 0.8, 1 / 3, 2 / 3, 1.5, notes={"shares": {"a": [1, 2]}}),
    Trial(BEST, Candidate(16, 2), 0.4, None, None, 2.5, "out of memory", exhausted=True),
]


def test_trials_come_back_as_they_were(tmp_path):
    with StudyJournal(tmp_path / "study.db", "CartPole-v1") as journal:
        for trial in TRIALS:
            journal.add(trial)
        assert journal.recorded() == TRIALS
    with StudyJournal(tmp_path / "study.db", "CartPole-v1") as journal:
        assert journal.recorded() == TRIALS
    with StudyJournal(tmp_path / "study.db", "Pendulum-v1") as journal:
        assert journal.recorded() == []


def test_optuna_shows_failures_and_the_best_value(tmp_path):
    with StudyJournal(tmp_path / "study.db", "x") as journal:
        for trial in TRIALS:
            journal.add(trial)
    study = optuna.load_study(study_name="x", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert study.best_params["envs_per_worker"] == 16


def test_a_search_goes_on_from_the_file(tmp_path):
    surface = surfaces.machine(5)

    def search(measure, journal):
        clock = measure.clock
        options = Settings(budget_s=20)
        return Search(
            surface.space, surface.default, measure, options, journal=journal, clock=clock
        ).run()

    with StudyJournal(tmp_path / "study.db", "x") as journal:
        first = search(Trials(surface), journal)
    again = Trials(surface)
    with StudyJournal(tmp_path / "study.db", "x") as journal:
        assert search(again, journal) == first
    assert again.measured == {}


def test_a_file_that_is_no_study_is_refused(tmp_path):
    path = tmp_path / "study.db"
    path.write_text("not a database\n" * 100)
    with pytest.raises(ConfigError, match=r"study\.db cannot be used as a study"):
        StudyJournal(path, "x")


def test_trials_of_other_programs_and_versions_are_left_out(tmp_path):
    with StudyJournal(tmp_path / "study.db", "x") as journal:
        journal.add(TRIALS[0])
    study = optuna.load_study(study_name="x", storage=f"sqlite:///{tmp_path / 'study.db'}")
    study.add_trial(optuna.create_trial(value=1.0, user_attrs={"seconds": 0.4}))
    study.add_trial(optuna.create_trial(value=1.0))
    with StudyJournal(tmp_path / "study.db", "x") as journal:
        assert journal.recorded() == TRIALS[:1]


def test_a_file_that_does_not_take_a_trial_is_told_in_one_line(tmp_path):
    path = tmp_path / "study.db"
    with StudyJournal(path, "x") as journal:
        with closing(sqlite3.connect(path)) as file:
            file.execute("DROP TABLE trials")
        with pytest.raises(ConfigError, match=r"^.*study\.db cannot be written: [^\n]*$"):
            journal.add(TRIALS[0])
        with closing(sqlite3.connect(path)) as file:
            file.execute("DROP TABLE studies")
        with pytest.raises(ConfigError, match=r"^.*study\.db cannot be written: [^\n]*$"):
            journal.keep_result(BEST, 30.0)
    with pytest.raises(ConfigError, match=r"study\.db cannot be used as a study"):
        StudyJournal(path, "x")


def test_several_may_make_the_file_at_once(tmp_path):
    """As several trainings do that are started together, all with 'sampler: auto'."""
    start = threading.Barrier(4)

    def use(number):
        start.wait(30)
        with StudyJournal(tmp_path / "study.db", "x") as journal:
            journal.add(TRIALS[number % len(TRIALS)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    with StudyJournal(tmp_path / "study.db", "x") as journal:
        assert len(journal.recorded()) == 4
