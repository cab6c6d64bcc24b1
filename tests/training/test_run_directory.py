from __future__ import annotations

import json
import re
from datetime import datetime

import pytest

from fastrl import runs
from fastrl.config import Config, EnvConfig, load_config
from fastrl.errors import ConfigError
from fastrl.runs import check_new_run, find_run, new_run_path, read_config
from fastrl.training import train
from fastrl.training.run_directory import RunDirectory
from fastrl.training.session import TrainingSession
from tests.training.clockwork import small_run


def test_new_run_holds_configuration_versions_and_machine(tmp_path):
    path = tmp_path / "deep" / "run"
    config = small_run(path)
    RunDirectory.create(path, config).close()
    assert load_config(path / "config.yaml") == config
    context = json.loads((path / "versions.json").read_text())
    assert context["versions"]["torch"]
    assert context["machine"]["cores"] >= 1


def test_second_trainer_in_the_same_directory_is_refused(tmp_path):
    path = tmp_path / "run"
    first = RunDirectory.create(path, small_run(path))
    with pytest.raises(ConfigError, match=r"is being trained in by process \d+; wait"):
        RunDirectory.open(path)
    with pytest.raises(ConfigError, match="is being trained in"):
        RunDirectory.create(path, small_run(path))
    first.close()
    first.close()
    RunDirectory.open(path).close()


def test_directory_that_holds_a_run_is_not_used_for_another(tmp_path):
    path = tmp_path / "run"
    RunDirectory.create(path, small_run(path)).close()
    with pytest.raises(ConfigError, match="contains a run already; continue it with fastrl resume"):
        RunDirectory.create(path, small_run(path))


def test_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(ConfigError, match="contains other files"):
        RunDirectory.create(tmp_path, small_run(tmp_path))
    with pytest.raises(ConfigError, match="contains other files"):
        check_new_run(small_run(tmp_path), None)
    assert {each.name for each in tmp_path.iterdir()} == {"thesis.tex"}


def test_a_configuration_is_no_run(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1")
    with pytest.raises(ConfigError, match=r"contains other files, such as 'config.yaml'; choose"):
        check_new_run(small_run(tmp_path), None)
    assert {each.name for each in tmp_path.iterdir()} == {"config.yaml"}


def test_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: "):
        RunDirectory.create(tmp_path / "run", small_run(tmp_path))
    for path in (tmp_path / "run", tmp_path / "run" / "inner"):
        with pytest.raises(ConfigError, match=r"cannot be made: '.*run' is not a directory"):
            check_new_run(small_run(path), None)


def test_run_is_found_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunDirectory.create(tmp_path / "runs" / "mine", small_run(tmp_path)).close()
    assert find_run("mine").resolve() == tmp_path / "runs" / "mine"
    assert find_run("runs/mine").resolve() == tmp_path / "runs" / "mine"
    assert find_run(tmp_path / "runs" / "mine") == tmp_path / "runs" / "mine"
    with pytest.raises(ConfigError, match=r"'other' is not .*; the latest is runs/mine"):
        find_run("other")
    with pytest.raises(ConfigError, match=r"'mind' is not .*; did you mean 'mine'\?"):
        find_run("mind")
    with pytest.raises(ConfigError, match="is not the directory of a run"):
        find_run("\0")


def test_new_runs_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(env=EnvConfig(id="package.module:make env/ü"), seed=5)
    paths = []
    for _ in range(3):
        path = new_run_path(config, None)
        path.mkdir(parents=True)
        paths.append(path)
    assert len(set(paths)) == 3
    for path in paths:
        assert path.parent.name == "runs"
        assert re.fullmatch(r"package\.module-make-env-ppo-s5-\d{8}-\d{6}(-\d)?", path.name)


def test_runs_that_start_at_the_same_moment_get_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = small_run(None, total_steps=64, run_dir=None)
    done = []

    class Overtaken(TrainingSession):
        """Another run of the same configuration is trained while this one is being built."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            if not done:
                done.append(None)
                done.append(train(config))

    monkeypatch.setattr("fastrl.training.run.TrainingSession", Overtaken)
    monkeypatch.setattr(runs, "datetime", Noon)
    last = train(config)
    assert {last.path.name, done[-1].path.name} == {NOON, f"{NOON}-2"}
    for each in (last, done[-1]):
        assert read_config(each.path).run_dir == str(each.path)
        assert each.outcome.steps == 64


NOON = "tests.training.clockwork-Clockwork-ppo-s3-20260101-120000"


class Noon(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1, 12)


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "..", ".hidden", "", "-x", "a b", "x" * 101, "a\n", "C:\\x"]
)
def test_name_that_is_no_plain_name_is_refused(name):
    with pytest.raises(ConfigError, match="--name"):
        new_run_path(Config(env=EnvConfig(id="A")), name)


def test_name_and_directory_exclude_each_other(tmp_path):
    assert new_run_path(small_run(tmp_path), None) == tmp_path
    with pytest.raises(ConfigError, match="give one of them"):
        new_run_path(small_run(tmp_path), "mine")
