"""``sampler: auto`` tunes once, and trains with what was found."""

import io

import pytest
from rich.console import Console

from fastrl.config import load_config
from fastrl.errors import ConfigError
from fastrl.training import train
from fastrl.tuning import auto
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
    config = load_config(None, [*TINY, "sampler.tune_s=3"])
    said = Console(file=io.StringIO())
    first = tuned(config, said)
    assert first.topology.num_envs == 8
    assert first.sampler.tune_s is None
    monkeypatch.setattr(auto, "Tuning", None)
    assert tuned(config, said) == first
    lines = said.file.getvalue().splitlines()
    assert lines[0].startswith("tuned in ")
    assert lines[1].startswith("tuned before: n=")


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
    def refuse(self, trial):
        raise ConfigError("tuning.db cannot be written: database is locked")

    monkeypatch.setattr(StudyJournal, "add", refuse)
    monkeypatch.setattr(StudyJournal, "keep_result", refuse)
    said = Console(file=io.StringIO())
    tuned(load_config(None, [*TINY, "sampler.tune_s=2"]), said)
    assert said.file.getvalue().startswith("tuned in ")
