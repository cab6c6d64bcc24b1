"""``sampler: auto`` tunes once, and trains with what was found."""

import io
import json
import math
import shutil
import sqlite3
from contextlib import closing
from types import SimpleNamespace

import optuna
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from tuner_bench.surfaces import Surface, Trials

from fastrl.cli import main
from fastrl.config import load_config
from fastrl.cores import usable_cores
from fastrl.errors import ConfigError
from fastrl.training import train
from fastrl.tuning import Candidate, Search, Settings, Space, auto, study
from fastrl.tuning.auto import tuned
from fastrl.tuning.report import TuneReport
from fastrl.tuning.study import StudyJournal

TINY = [
    "env.id=CartPole-v1",
    "sampler.envs_per_worker=4",
    "sampler.num_env_workers=2",
    "sampler.rollout_length=8",
    "algorithm.minibatch_size=16",
    "algorithm.epochs=1",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_name_in_the_place_of_the_section_asks_for_it(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("env:\n  id: CartPole-v1\nsampler: auto\n")
    assert load_config(path).sampler.tune_s == 30


def test_what_was_found_is_kept_and_the_number_of_environments_stays(monkeypatch):
    config = load_config(None, [*TINY, "sampler.tune_s=1"])
    said = Console(file=io.StringIO())
    first = tuned(config, said)
    assert first.topology.num_envs == 8
    assert first.sampler.tune_s is None
    monkeypatch.setattr(auto, "Tuning", None)
    assert tuned(config, said) == first
    lines = said.file.getvalue().splitlines()
    assert lines[0].startswith("tuned in ")
    assert lines[1].startswith("tuned before: n=")


class OnPaper:
    """A tuning that has found something at once."""

    made = 0

    ends_with = "the time is up"

    def __init__(self, config, options, journal=None):
        self.options, self.ended = options, self.ends_with
        self.trials = [] if journal is None else journal.recorded()

    def __enter__(self):
        OnPaper.made += 1
        return self

    def __exit__(self, *_):
        pass

    def run(self):
        finding = SimpleNamespace(best=Candidate(4, 2), ended=self.ended, spent_s=0.0)
        return SimpleNamespace(finding=finding)


@pytest.fixture
def on_paper(monkeypatch):
    """Return a tuning that runs the given number of times, and how it ends."""
    monkeypatch.setattr(auto, "Tuning", OnPaper)

    def tune(seconds, ends_with="the time is up", **options):
        OnPaper.made, OnPaper.ends_with = 0, ends_with
        tuned(load_config(None, [*TINY, f"sampler.tune_s={seconds}"]), **options)
        return OnPaper.made

    return tune


def test_a_tuning_that_was_cut_short_is_gone_on_with_where_there_is_more_time(on_paper):
    assert [on_paper(6), on_paper(6), on_paper(3)] == [1, 0, 0]
    assert [on_paper(30), on_paper(30), on_paper(6)] == [1, 0, 0]


def test_a_tuning_that_has_come_to_its_end_is_never_gone_on_with(on_paper):
    assert [on_paper(6, "no neighbour is faster"), on_paper(600)] == [1, 0]


def test_what_is_kept_is_forgotten_where_that_is_asked_for(on_paper):
    assert [on_paper(6), on_paper(6, fresh=True), on_paper(6)] == [1, 1, 0]


def test_nothing_is_forgotten_where_nothing_is_tuned(capsys):
    assert main(["train", "env.id=CartPole-v1", "--fresh"]) == 2
    assert "--fresh tunes anew, and nothing is tuned here" in capsys.readouterr().err


def test_a_configuration_without_it_is_left_alone():
    config = load_config(None, TINY)
    assert tuned(config) is config


def test_training_in_python_says_what_to_do_first():
    with pytest.raises(ConfigError, match=r"tune first, by fastrl\.tuning"):
        train(load_config(None, [*TINY, "sampler.tune_s=3"]))


def test_only_processes_are_tuned():
    with pytest.raises(ConfigError, match="only 'process' is tuned, got 'serial'"):
        tuned(load_config(None, [*TINY, "sampler.kind=serial", "sampler.tune_s=3"]))


def test_a_file_that_keeps_nothing_does_not_keep_one_from_training(monkeypatch):
    def refuse(self, *_):
        raise ConfigError("tuning.db cannot be written: database is locked")

    monkeypatch.setattr(StudyJournal, "add", refuse)
    monkeypatch.setattr(StudyJournal, "keep_result", refuse)
    said = Console(file=io.StringIO())
    tuned(load_config(None, [*TINY, "sampler.tune_s=2"]), said)
    lines = said.file.getvalue().splitlines()
    assert lines[0] == (
        "what is measured is not kept: tuning.db cannot be written: database is locked"
    )
    assert lines[1].startswith("tuned in ")
    assert len(lines) == 2


@pytest.mark.parametrize("damage", ["garbage", "cut", "emptied"])
def test_a_damaged_file_is_replaced(on_paper, cache, damage):
    assert on_paper(6) == 1
    path = cache / "fastrl" / "tuning.db"
    content = path.read_bytes()
    path.write_bytes(
        {
            "garbage": b"x" * len(content),
            "cut": content[: len(content) // 2],
            "emptied": b"",
        }[damage]
    )
    assert [on_paper(6), on_paper(6)] == [1, 0]


def test_a_cache_that_cannot_be_made_does_not_keep_one_from_training(cache, monkeypatch):
    monkeypatch.setattr(auto, "Tuning", OnPaper)
    OnPaper.ends_with = "the time is up"
    (cache / "fastrl").write_text("a file in the place of the directory")
    said = Console(file=io.StringIO())
    tuned(load_config(None, [*TINY, "sampler.tune_s=6"]), said)
    first, second = said.file.getvalue().splitlines()
    assert first.startswith("what is measured is not kept: ")
    assert second.startswith("tuned in ")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Return a file that holds a final result, of 4 environments in each of 2 workers."""
    path = tmp_path_factory.mktemp("result") / "tuning.db"
    with StudyJournal(path, "x") as journal:
        journal.keep_result(Candidate(4, 2), math.inf)
    return path


@pytest.fixture
def kept(result, cache, monkeypatch):
    """Return a cache with a result, and what tunes again and returns how it went."""
    monkeypatch.setattr(auto, "Tuning", OnPaper)
    # Looking at all packages' versions takes a while.
    monkeypatch.setattr(auto, "study_name", lambda *_: "x")
    monkeypatch.setattr(study, "_MAKING_S", 0.0)
    config = load_config(None, [*TINY, "sampler.tune_s=6"])
    path = cache / "fastrl" / "tuning.db"
    path.parent.mkdir()
    shutil.copy(result, path)

    def again():
        OnPaper.made, said = 0, Console(file=io.StringIO(), width=500)
        found = tuned(config, said)
        return found, OnPaper.made, said.file.getvalue().splitlines()

    return path, again


def change(path, sql, *values):
    with closing(sqlite3.connect(path)) as file, file:
        file.execute(sql, values)


def write_result(path, best, enough_s=math.inf):
    for key, value in (("best", best), ("enough_s", enough_s)):
        sql = "UPDATE study_user_attributes SET value_json = ? WHERE key = ?"
        change(path, sql, json.dumps(value), key)


def is_possible(config):
    """Say whether a configuration is one that tuning `TINY` may end with on this machine."""
    sampler, cores = config.sampler, usable_cores()
    devices = {"cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))}
    return (
        config.topology.num_envs == 8
        and sampler.num_env_workers <= max(2, 2 * cores)
        and sampler.num_model_workers <= sampler.num_env_workers
        and sampler.groups in (1, 2)
        and sampler.torch_threads == 1
        and sampler.engine == "auto"
        and set(sampler.devices) <= devices
    )


POSSIBLE = Candidate(4, 2).to_dict()
IMPOSSIBLE = {
    "other_num_envs": {"envs_per_worker": 64},
    "too_many_processes": {"envs_per_worker": 1, "num_env_workers": 3000},
    "too_many_model_workers": {"num_model_workers": 3},
    "groups_that_do_not_divide": {"num_model_workers": 1, "groups": 3},
    "too_many_threads": {"torch_threads": 100_000},
    "no_such_device": {"num_model_workers": 1, "device": "cuda:99"},
    "no_such_engine": {"engine": "os:system"},
    "numbers_of_another_kind": {"groups": 1.0},
    "texts_of_another_kind": {"device": ["cpu"]},
    "another_key": {"n": 4},
}


@pytest.mark.parametrize("changes", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_result_is_told_in_one_line_and_tuned_anew(kept, changes):
    path, again = kept
    write_result(path, {**POSSIBLE, **changes})
    found, made, lines = again()
    assert made == 1
    assert is_possible(found)
    assert len(lines) == 2
    assert str(path) in lines[0]
    assert lines[0].endswith("tuned anew")
    assert lines[1].startswith("tuned in ")
    assert again()[1:] == (0, ["tuned before: n=4 N=2 M=0"])


@pytest.mark.parametrize("enough_s", ["600", None, math.nan, -1.0, [1]])
def test_a_budget_that_is_none_is_told_and_tuned_anew(kept, enough_s):
    path, again = kept
    write_result(path, POSSIBLE, enough_s)
    _, made, lines = again()
    assert (made, len(lines)) == (1, 2)


numbers = st.integers(-2, 2**40) | st.floats() | st.booleans()
json_values = st.recursive(
    st.none() | numbers | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*POSSIBLE, "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
candidates = json_values | st.fixed_dictionaries(
    {name: st.just(value) | numbers | json_values for name, value in POSSIBLE.items()}
)
FIXTURES_ARE_KEPT = [HealthCheck.function_scoped_fixture]


@settings(max_examples=8, deadline=None, suppress_health_check=FIXTURES_ARE_KEPT)
@given(best=candidates, enough_s=st.just(math.inf) | json_values)
def test_whatever_the_result_says_the_run_is_a_possible_one(kept, best, enough_s):
    path, again = kept
    write_result(path, best, enough_s)
    found, made, lines = again()
    assert is_possible(found)
    assert len(lines) == 1 + (made and not lines[0].startswith("tuned in"))


@settings(max_examples=8, deadline=None, suppress_health_check=FIXTURES_ARE_KEPT)
@given(data=st.data())
def test_whatever_bytes_the_file_has_training_begins(kept, data, result):
    path, again = kept
    content = bytearray(result.read_bytes())
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content)), "length") :]
    for _ in range(data.draw(st.integers(0, 40), "changes") if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    found, made, lines = again()
    assert is_possible(found)
    assert len(lines) <= 1 + made


TRIAL = {
    "seconds": 0.4,
    "reference_fps": 1.0,
    "cost_s": 1.0,
    "error": "",
    "exhausted": False,
    "notes": {"shares": {}, "limit_s": 5.0},
    "reference": POSSIBLE,
    "texts": {"device": "cpu", "engine": "auto"},
}


@settings(max_examples=8, deadline=None, suppress_health_check=FIXTURES_ARE_KEPT)
@given(
    said=st.fixed_dictionaries({k: st.just(v) | json_values for k, v in TRIAL.items()}),
    fps=st.none() | st.floats(allow_nan=False),
)
def test_whatever_trials_say_a_search_goes_on(kept, said, fps):
    path, _ = kept
    kept_study = optuna.load_study(study_name="x", storage=f"sqlite:///{path}")
    whole = {key: value for key, value in POSSIBLE.items() if isinstance(value, int)}
    numbers = {key: optuna.distributions.IntDistribution(0, 2**31 - 1) for key in whole}
    state = optuna.trial.TrialState.FAIL if fps is None else optuna.trial.TrialState.COMPLETE
    kept_study.add_trial(
        optuna.create_trial(
            state=state, value=fps, params=whole, distributions=numbers, user_attrs=said
        )
    )
    surface = Surface("paper", Space(2, batch=(8, 8)), Candidate(4, 2), lambda c: 100.0)
    with StudyJournal(path, "x") as journal:
        options = Settings(budget_s=1.0, limit_s=1.0)
        search = Search(surface.space, surface.default, Trials(surface), options, journal=journal)
        report = TuneReport("x", "fps", search.run())
    json.dumps(report.to_dict())
    assert report.to_rich()
