"""The commands that record datasets, and that show them."""

from __future__ import annotations

import json

import pytest
import torch  # noqa: F401 - the first command would write that it is loading

from fastrl import cli
from fastrl.config import save_config
from tests.datasets.playing import COUNTING, counting_config

PLAYING = "tests.datasets.playing"


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_recorded_dataset_is_shown_as_table_picture_and_json(run, tmp_path):
    save_config(counting_config(length=4, ending="alternate"), tmp_path / "counting.yaml")
    policy = "tests.datasets.playing:by_place"
    code, out, err = run(
        *("record", "counting.yaml", "--policy", policy),
        *("--dataset", "set", "--episodes", 12),
    )
    # The line is missing where an earlier test has imported torch.
    assert (code, err.removeprefix("loading …\n")) == (0, "")
    # Episodes 0 and 1 of each environment; a reward is 1,000 times the episode plus the step.
    assert out.startswith("set: 12 episodes, 48 steps, return 2,010.0 ± 2,000.0 (")

    code, out, err = run("dataset", "set", "--json", "set.json", "--picture", "set.png")
    assert (code, err) == (0, "set.png\n")
    for text in (COUNTING, "12 (6 terminated, 6 truncated)", "Discrete(5)", "(10.0 … 4,010.0)"):
        assert text in out
    found = json.loads((tmp_path / "set.json").read_text())
    assert found["lengths"] == [4] * 12
    assert sorted(found["returns"]) == [10.0] * 6 + [4010.0] * 6
    assert (found["steps"], found["terminated"], found["infos"]) == (48, 6, [])
    assert found["bytes"] > 0
    assert (tmp_path / "set.png").stat().st_size > 1000


def test_wrong_arguments_are_one_line(run, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "taken").mkdir()
    for arguments, message in (
        (("record", "CartPole-v1", "--policy", "a:b"), "--policy needs --dataset"),
        (
            ("record", "CartPole-v1", "--policy", "a:b", "--dataset", "set", "--sampled"),
            "--sampled, --checkpoint and --trust are for runs",
        ),
        (
            ("throughput", "CartPole-v1", "algorithm.name=bc", "dataset.path=set"),
            "algorithm.name: sampling is measured without bc",
        ),
        (
            ("record", "run", "--video", "a.gif", "--dataset", "set"),
            "--video and --dataset exclude each other",
        ),
        (("record", "run", "--dataset", "file"), "--dataset: 'file' is not a directory"),
        (("record", "nothing", "--dataset", "set"), "'nothing' is not the directory of a run"),
        (
            ("record", "CartPole-v1", "--policy", "nothing:here", "--dataset", "set"),
            "--policy: 'nothing:here' cannot be imported",
        ),
        (
            ("record", "CartPole-v1", "--policy", f"{PLAYING}:wrong", "--dataset", "set"),
            f"--policy: '{PLAYING}:wrong': wrong returned 'left', which is not an action of Dis",
        ),
        (
            ("record", "CartPole-v1", "--policy", f"{PLAYING}:not_finite", "--dataset", "set"),
            "not_finite returned nan, which is not an action of Discrete(2)",
        ),
        (
            ("record", "CartPole-v1", "--policy", f"{PLAYING}:raising", "--dataset", "set"),
            f"--policy: '{PLAYING}:raising' raised IndexError: index 99 is out of bounds",
        ),
        (
            ("record", "CartPole-v1", "--policy", f"{PLAYING}:by_place", "--dataset", "taken"),
            "'taken' exists already; name a new directory",
        ),
        (("dataset", "taken", "--picture", "a.txt"), "'a.txt' must end in .png or .pdf or .svg"),
        (("dataset", "nothing"), "dataset: 'nothing' is not a directory"),
        (("dataset", "."), "dataset: '.' is not a dataset: there is no metadata.json"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert message in err
        assert err.count("\n") == 1
