"""``sampler: auto`` tunes once, and trains with what was found."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from fastrl.cli import main
from fastrl.config import load_config
from fastrl.errors import ConfigError
from fastrl.training import train
from fastrl.tuning import Candidate, auto
from fastrl.tuning.auto import tuned
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

    def __init__(self, config, options, journal=None):
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
