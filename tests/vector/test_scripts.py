"""Scripts about vector environments keep results that they do not measure, and fail in one line."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def run(monkeypatch):
    """Run a script as its own program; return its exit status."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr("bench.plots.curves", lambda panels, path, title: path.touch())

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return ended.value.code

    return run


def test_measuring_some_rows_leaves_the_others_as_they_are(run, tmp_path, capsys):
    path = tmp_path / "found.json"
    options = ["--seconds", "0.001", "--json", path, "--plot", tmp_path / "found.png"]

    def measure(*more):
        assert not run("bench_vector.py", *options, "--methods", "sequential", *more)
        rows = json.loads(path.read_text())["results"]
        return {(row["env"], row["num_envs"]): row["step_s"] for row in rows}

    first = measure("--sizes", "1,2", "--rounds", "2")
    assert {key: len(rounds) for key, rounds in first.items()} == {
        ("CartPole-v1", 1): 2,
        ("CartPole-v1", 2): 2,
    }
    other = measure("--sizes", "1", "--env", "Pendulum-v1")
    assert other == first | {("Pendulum-v1", 1): other["Pendulum-v1", 1]}
    replaced = measure("--sizes", "2")
    assert len(replaced["CartPole-v1", 2]) == 1
    assert replaced["CartPole-v1", 1] == first["CartPole-v1", 1]
    added = measure("--sizes", "2", "--add")
    assert added["CartPole-v1", 2][:1] == replaced["CartPole-v1", 2]
    assert len(added["CartPole-v1", 2]) == 2
    assert "## Pendulum-v1" in (tmp_path / "found.md").read_text()

    found = json.loads(path.read_text())
    found["machine"]["cores"] += 1
    path.write_text(json.dumps(found))
    assert run("bench_vector.py", *options, "--sizes", "1") == 2
    assert "was measured on another machine (cores" in capsys.readouterr().err
    assert json.loads(path.read_text()) == found
    assert len(measure("--sizes", "1", "--new")) == 1


def test_method_that_an_environment_does_not_know_is_left_out(run, tmp_path, capsys):
    path = tmp_path / "found.json"
    methods = ["--methods", "fastrl native,sequential", "--sizes", "1", "--seconds", "0.001"]
    outputs = ["--json", path, "--plot", tmp_path / "found.png"]
    assert not run("bench_vector.py", "--env", "FrozenLake-v1", *methods, *outputs)
    assert "left out: there is no native 'FrozenLake-v1'" in capsys.readouterr().out
    assert [row["method"] for row in json.loads(path.read_text())["results"]] == ["sequential"]


@pytest.mark.parametrize(
    "command",
    [
        "bench_vector.py --env CartPole-1",
        "bench_training.py no_such_config.yaml",
    ],
)
def test_what_does_not_exist_is_told_in_one_line(command, run, capsys):
    name, *arguments = command.split()
    assert run(name, *arguments) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith(f"{name.removesuffix('.py')}: error: ")
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", ["--sizes 0", "--sizes many", "--methods slow", "--rounds 0", "--add --new"]
)
def test_arguments_of_the_measurement_that_make_no_sense_are_refused(arguments, run, capsys):
    assert run("bench_vector.py", *arguments.split()) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("bench_vector: error: ")
