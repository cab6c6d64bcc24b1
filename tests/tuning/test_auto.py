"""``sampler: auto`` tunes once, and trains with what was found."""

import io
import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from fastrl.cli import main
from fastrl.config import load_config
from fastrl.errors import ConfigError
from fastrl.system import usable_cores
from fastrl.training import train
from fastrl.tuning import Candidate, tune, tuned

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
    monkeypatch.setattr(tune, "Tuning", None)
    assert tuned(config, said) == first
    lines = said.file.getvalue().splitlines()
    assert lines[0].startswith("tuned in ")
    assert lines[1].startswith("tuned before: n=")


class OnPaper:
    """A tuning that has found something at once."""

    made = 0

    ends_with = "the time is up"

    def __init__(self, config, options, study=None):
        self.options, self.ended = options, self.ends_with

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
    monkeypatch.setattr(tune, "Tuning", OnPaper)

    def times(seconds, ends_with="the time is up", **options):
        OnPaper.made, OnPaper.ends_with = 0, ends_with
        tuned(load_config(None, [*TINY, f"sampler.tune_s={seconds}"]), **options)
        return OnPaper.made

    return times


def test_a_tuning_that_was_cut_short_is_gone_on_with_where_there_is_more_time(on_paper):
    assert [on_paper(6), on_paper(6), on_paper(3)] == [1, 0, 0]
    assert [on_paper(30), on_paper(30), on_paper(6)] == [1, 0, 0]


def test_a_tuning_that_has_come_to_its_end_is_never_gone_on_with(on_paper):
    assert [on_paper(6, "no neighbour is faster"), on_paper(600)] == [1, 0]


def test_what_is_kept_is_forgotten_where_that_is_asked_for(on_paper):
    assert [on_paper(6), on_paper(6, fresh=True), on_paper(6)] == [1, 1, 0]


def test_nothing_is_forgotten_where_nothing_is_tuned(capsys):
    assert main(["train", "env.id=CartPole-v1", "--fresh"]) == 2
    assert "--fresh needs a sampler that is tuned" in capsys.readouterr().err


def test_a_configuration_without_it_is_left_alone():
    config = load_config(None, TINY)
    assert tuned(config) is config


def test_training_in_python_says_what_to_do_first():
    with pytest.raises(ConfigError, match=r"tune first, by fastrl\.tuning"):
        train(load_config(None, [*TINY, "sampler.tune_s=3"]))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            "callbacks=[{path: 'fastrl:Callback', kwargs: {a: 1}}]",
            "callbacks: 'fastrl:Callback' does not take its kwargs: ",
        ),
        ("logging.loggers=['fastrl:Callback']", "'fastrl:Callback' does not take (run, config,"),
        (
            "model={class_path: 'fastrl:ActorCritic', kwargs: {a: 1}}",
            "model.class_path 'fastrl:ActorCritic' does not take model.kwargs: ",
        ),
    ],
)
def test_wrong_arguments_of_named_code_are_told_before_anything_is_measured(
    wrong, told, monkeypatch
):
    monkeypatch.setattr(tune, "Tuning", None)
    monkeypatch.setattr("fastrl.training.session.make_plan", None)
    config = load_config(None, [*TINY, "sampler.tune_s=1", wrong])
    untuned = load_config(None, [*TINY, wrong])
    for begin in (tuned, train):
        with pytest.raises(ConfigError) as caught:
            begin(config if begin is tuned else untuned)
        assert told in str(caught.value)


def test_a_directory_that_holds_a_run_is_told_before_anything_is_measured(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("fastrl.tuning.tuned", None)
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / name).touch()
    assert main(["train", *TINY, "sampler.tune_s=1", f"run_dir={tmp_path}"]) == 2
    assert "contains a run already" in capsys.readouterr().err


def test_only_processes_are_tuned():
    with pytest.raises(ConfigError, match="only 'process' is tuned, got 'serial'"):
        tuned(load_config(None, [*TINY, "sampler.kind=serial", "sampler.tune_s=3"]))


def test_a_file_that_keeps_nothing_does_not_keep_one_from_training(cache, monkeypatch):
    monkeypatch.setattr(tune, "Tuning", OnPaper)
    (cache / "fastrl" / "tuning.jsonl").mkdir(parents=True)
    said = Console(file=io.StringIO(), width=500)
    tuned(load_config(None, [*TINY, "sampler.tune_s=2"]), said)
    first, second = said.file.getvalue().splitlines()
    assert first.startswith("trials are not kept: ")
    assert first.endswith("tuning.jsonl cannot be read: Is a directory")
    assert second.startswith("tuned in ")


@pytest.mark.parametrize("damage", ["garbage", "cut", "emptied"])
def test_a_damaged_file_is_replaced(on_paper, cache, damage):
    assert on_paper(6) == 1
    path = cache / "fastrl" / "tuning.jsonl"
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
    monkeypatch.setattr(tune, "Tuning", OnPaper)
    OnPaper.ends_with = "the time is up"
    (cache / "fastrl").write_text("a file in the place of the directory")
    said = Console(file=io.StringIO())
    tuned(load_config(None, [*TINY, "sampler.tune_s=6"]), said)
    first, second = said.file.getvalue().splitlines()
    assert first.startswith("trials are not kept: ")
    assert second.startswith("tuned in ")


@pytest.fixture
def kept(cache, monkeypatch):
    """Return a cache's file, and what tunes again and returns how it went."""
    monkeypatch.setattr(tune, "Tuning", OnPaper)
    # Looking at all packages' versions takes a while.
    monkeypatch.setattr(tune, "study_name", lambda *_: "x")
    config = load_config(None, [*TINY, "sampler.tune_s=6"])
    path = cache / "fastrl" / "tuning.jsonl"
    path.parent.mkdir()

    def again():
        OnPaper.made, OnPaper.ends_with = 0, "no neighbour is faster"
        said = Console(file=io.StringIO(), width=500)
        found = tuned(config, said)
        return found, OnPaper.made, said.file.getvalue().splitlines()

    return path, again


def result(best, enough_s=None):
    return json.dumps({"study": "x", "result": {"best": best, "enough_s": enough_s}}) + "\n"


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
}
DAMAGED = {
    "numbers_of_another_kind": {"groups": 1.0},
    "texts_of_another_kind": {"device": ["cpu"]},
    "another_key": {"n": 4},
}


@pytest.mark.parametrize("changes", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_result_is_told_in_one_line_and_tuned_anew(kept, changes):
    path, again = kept
    path.write_text(result({**POSSIBLE, **changes}))
    found, made, lines = again()
    assert made == 1
    assert is_possible(found)
    assert len(lines) == 2
    assert lines[0].endswith("tuning again")
    assert lines[1].startswith("tuned in ")
    assert again()[1:] == (0, ["tuned before: n=4 N=2 M=0"])


@pytest.mark.parametrize("changes", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_result_counts_for_nothing(kept, changes):
    path, again = kept
    path.write_text(result({**POSSIBLE, **changes}))
    found, made, lines = again()
    assert is_possible(found)
    assert (made, len(lines)) == (1, 1)


@pytest.mark.parametrize("enough_s", ["600", -1.0, [1]])
def test_a_budget_that_is_none_is_tuned_anew(kept, enough_s):
    path, again = kept
    path.write_text(result(POSSIBLE, enough_s))
    assert again()[1] == 1


numbers = st.integers(-2, 2**40) | st.floats() | st.booleans()
json_values = st.none() | numbers | st.text(max_size=5) | st.lists(numbers, max_size=3)
candidates = json_values | st.fixed_dictionaries(
    {name: st.just(value) | json_values for name, value in POSSIBLE.items()}
)
FIXTURES_ARE_KEPT = [HealthCheck.function_scoped_fixture]


@settings(max_examples=10, suppress_health_check=FIXTURES_ARE_KEPT)
@given(best=candidates, enough_s=json_values, data=st.data())
def test_whatever_the_file_says_the_run_is_a_possible_one(kept, best, enough_s, data):
    path, again = kept
    content = bytearray(result(best, enough_s).encode())
    for _ in range(data.draw(st.integers(0, 9), "changes")):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    found, made, lines = again()
    assert is_possible(found)
    assert len(lines) <= 1 + made
