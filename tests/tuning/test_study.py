"""Trials survive in a file of JSON lines with other content."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastrl.errors import ConfigError
from fastrl.tuning import Candidate, Notes, Search, Settings, Space, Study, Trial
from fastrl.tuning.study import Result, cached_study
from fastrl.tuning.tune_report import TuneReport
from tests.tuning import surfaces
from tests.tuning.surfaces import Surface, Trials

BEST = Candidate(64, 2, 1, 2, "cuda:0", "bfloat16", 2)
TRIALS = [
    Trial(Candidate(16, 2), None, 0.4, 1234.5678901234567, cost_s=0.1, notes=Notes(seen_fps=0.25)),
    Trial(
        *(BEST, Candidate(16, 2), 0.8, 1 / 3, 2 / 3, 1.5),
        notes=Notes(1e9 / 7, {"env-worker": {"stepping": 1 / 3}}, 0.2),
    ),
    Trial(BEST, Candidate(16, 2), 0.4, None, None, 2.5, "out of memory", True, 5.0),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study.jsonl"


def test_trials_and_results_come_back_as_they_were(path):
    study = Study(path, "CartPole-v1")
    for trial in TRIALS:
        study.add(trial)
    assert Study(path, "CartPole-v1").result is None
    for enough_s in (30.0, None):
        study.keep_result(Result(BEST, enough_s))
        assert Study(path, "CartPole-v1").result == Result(BEST, enough_s)
    assert Study(path, "CartPole-v1").trials == TRIALS
    other = Study(path, "Pendulum-v1")
    assert (other.trials, other.result) == ([], None)


def test_what_is_forgotten_stays_so(path):
    study, other = Study(path, "x"), Study(path, "y")
    study.add(TRIALS[0])
    other.add(TRIALS[1])
    study.keep_result(Result(BEST, None))
    assert Study(path, "x", fresh=True).trials == []
    again = Study(path, "x")
    assert (again.trials, again.result) == ([], None)
    assert Study(path, "y").trials == TRIALS[1:2]


def test_a_search_goes_on_from_the_file(path):
    surface = surfaces.machine(5)

    def search(measure):
        options = Settings(budget_s=20)
        place = (surface.space, surface.default, measure, options)
        return Search(*place, study=Study(path, "x"), clock=measure.clock).run()

    first, again = search(Trials(surface)), Trials(surface)
    assert search(again) == first
    assert again.measured == {}


@pytest.mark.parametrize("content", [b'{"a": 1}\n', b"SQLite format 3\0" + bytes(range(256))])
def test_a_file_that_is_something_else_is_left_as_it_is(path, content):
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"study\.jsonl is not a study: name another file"):
        Study(path, "x")
    assert path.read_bytes() == content


def test_a_line_that_was_cut_costs_nothing_but_itself(path):
    study = Study(path, "x")
    for trial in TRIALS:
        study.add(trial)
    path.write_bytes(path.read_bytes()[:-20])
    study = Study(path, "x")
    assert study.trials == TRIALS[:2]
    study.add(TRIALS[0])
    assert Study(path, "x").trials == [*TRIALS[:2], TRIALS[0]]


def test_a_file_that_does_not_take_a_trial_is_told_in_one_line(path):
    study = Study(path, "x")
    path.mkdir()
    with pytest.raises(ConfigError, match=r"^.*study\.jsonl cannot be written: Is a directory$"):
        study.add(TRIALS[0])
    with pytest.raises(ConfigError, match=r"^.*study\.jsonl cannot be read: Is a directory$"):
        Study(path, "x")


def test_a_cache_that_does_not_take_a_trial_is_told_once_and_done_without(path):
    said = []
    study = Study(path, "x", say=said.append)
    path.mkdir()
    for trial in TRIALS:
        study.add(trial)
    assert study.trials == TRIALS
    assert len(said) == 1
    assert said[0].startswith("trials are not kept: ")


def test_an_account_without_a_place_for_caches_keeps_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = []
    study = cached_study("x", said.append)
    study.add(TRIALS[0])
    assert study.trials == TRIALS[:1]
    assert len(said) == 1


def test_an_error_may_say_what_is_no_proper_text(path):
    study = Study(path, "x")
    study.add(Trial(BEST, None, 0.4, None, error="no file '\udc80'"))
    study.add(TRIALS[0])
    assert Study(path, "x").trials[-1] == TRIALS[0]


def test_several_may_write_at_once(path):
    """As several trainings do that are started together, all with 'sampler: auto'."""
    start = threading.Barrier(4)

    def use(number):
        start.wait(30)
        study = Study(path, "x")
        for _ in range(5):
            study.add(TRIALS[number % len(TRIALS)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert len(Study(path, "x").trials) == 20


numbers = st.integers(-2, 2**80) | st.floats() | st.booleans()
json_values = st.recursive(
    st.none() | numbers | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["envs_per_worker", "shares", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
TRIAL = {
    "candidate": {"envs_per_worker": 4, "num_env_workers": 2},
    "reference": {"envs_per_worker": 8, "num_env_workers": 1},
    "seconds": 0.4,
    "fps": 1.0,
    "reference_fps": 1.0,
    "cost_s": 1.0,
    "error": "",
    "exhausted": False,
    "limit_s": 5.0,
    "notes": {"shares": {"env-worker": {"stepping": 0.5}}},
}


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(said=st.fixed_dictionaries({k: st.just(v) | json_values for k, v in TRIAL.items()}))
def test_whatever_trials_say_a_search_goes_on(tmp_path_factory, said):
    path = tmp_path_factory.mktemp("study") / "study.jsonl"
    Study(path, "x").add(TRIALS[0])
    with path.open("a") as file:
        file.write(json.dumps({"study": "x", "trial": said}) + "\n")
    surface = Surface("paper", Space(2, batch=(8, 8)), Candidate(4, 2), lambda c: 100.0)
    options = Settings(budget_s=1.0, limit_s=1.0)
    place = (surface.space, surface.default, Trials(surface), options)
    report = TuneReport("x", "fps", Search(*place, study=Study(path, "x")).run())
    json.dumps(report.to_dict())
    assert report.to_rich()
