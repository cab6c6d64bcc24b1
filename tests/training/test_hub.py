"""Runs that are shared, in a folder and on a stub of the hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import yaml

from fastrl.cli import main
from fastrl.errors import ConfigError
from fastrl.runs import read_config
from fastrl.training import (
    CheckpointError,
    evaluate_run,
    load_policy,
    pull_run,
    push_run,
    record_run,
    resume,
    train,
)
from tests.training.clockwork import small_run
from tests.training.hub_stub import hub_stub

ROOT = Path(__file__).parents[2]
TOKEN = "hf_not-in-any-file"
SESSION = """
import contextlib, io, json, sys
from fastrl.cli import main

def call(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()

print(json.dumps([call(*arguments) for arguments in json.loads(sys.argv[1])]))
"""


def files_of(directory):
    return sorted(
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    )


@pytest.fixture
def run(trained, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    return path


@pytest.fixture
def shared(run, tmp_path):
    """Return a folder that a run with a video was pushed to."""
    record_run(run, run / "videos" / "episode.gif")
    assert push_run(run, tmp_path / "shared") == str(tmp_path / "shared")
    return tmp_path / "shared"


def test_pulled_run_evaluates_to_the_digit(run, shared, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    pulled = pull_run(shared, tmp_path / "theirs")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "theirs"])
    assert evaluate_run(pulled, episodes=5, trust=True) == evaluate_run(run, episodes=5)
    act = load_policy(pulled, trust=True).act([1.0, 0.0, 1.0])[0]
    assert act == load_policy(run).act([1.0, 0.0, 1.0])[0]


def test_what_is_shared_has_weights_text_pictures_and_no_pickle(run, shared):
    (place,) = (path.relative_to(shared) for path in (shared / "checkpoints").iterdir())
    names = ["README.md", "config.yaml", "curve.png", "metrics.jsonl", "spaces.json"]
    names += ["summary.json", "versions.json", "videos/episode.gif"]
    names += [f"{place}/meta.json", f"{place}/model.safetensors"]
    assert files_of(shared) == sorted(names)
    card = (shared / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["library_name"] == "fastrl"
    summary = json.loads((run / "summary.json").read_text())
    assert f"| steps/s | {summary['steps_per_s']:,.0f} |" in card
    assert "![Return over steps of PPO" in card
    assert "![Video of the policy](videos/episode.gif)" in card
    assert "imports code that is not here: 'tests.training.clockwork:Clockwork'" in card


def test_configuration_loses_what_is_of_this_machine(tmp_path):
    config = small_run(tmp_path / "run", total_steps=64)
    entry = {"path": "tests.training.test_hub:Secretive", "kwargs": {"key": "secret-key"}}
    logging = config.logging.model_validate({"loggers": [entry]})
    train(config.model_copy(update={"logging": logging}))
    assert "secret-key" in (tmp_path / "run" / "config.yaml").read_text()
    push_run(tmp_path / "run", tmp_path / "shared")
    for name in files_of(tmp_path / "shared"):
        content = (tmp_path / "shared" / name).read_bytes()
        assert b"secret-key" not in content, name
        assert str(tmp_path).encode() not in content, name


class Secretive:
    """A logger with a key."""

    def __init__(self, run, config, steps, key):
        pass

    def write(self, kind, row):
        pass

    def close(self):
        pass


def test_pulled_run_needs_no_other_file(shared, tmp_path):
    base = tmp_path / "base.yaml"
    (shared / "config.yaml").rename(base)
    (shared / "config.yaml").write_text(f"base: {base}\nseed: 7\n")
    pulled = pull_run(shared, tmp_path / "theirs")
    base.unlink()
    assert read_config(pulled).seed == 7


def test_pulled_run_imports_code_only_if_it_is_trusted(shared, tmp_path, capsys):
    assert main(["pull", str(shared), str(tmp_path / "theirs")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'theirs'}\n"
    assert "tests.training.clockwork:Clockwork" in err
    assert main(["eval", str(tmp_path / "theirs")]) == 2
    assert "was not trained by this user" in capsys.readouterr().err


def test_other_files_of_a_shared_run_stay_where_they_are(run, shared, tmp_path):
    (checkpoint,) = (shared / "checkpoints").iterdir()
    for name in ("evil.py", "signature", ".lock", "videos/run.sh"):
        (shared / name).write_text("import os")
    shutil.copy(run / "checkpoints" / checkpoint.name / "state.pt", checkpoint)
    pulled = pull_run(shared, tmp_path / "theirs")
    assert all(each.suffix not in (".py", ".pt", ".sh") for each in pulled.rglob("*"))
    assert not (pulled / "signature").exists()
    (shared / "metrics.jsonl").unlink()
    (shared / "metrics.jsonl").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="symbolic link"):
        pull_run(shared, tmp_path / "linked")
    assert not (tmp_path / "linked").exists()


def test_damaged_weights_are_reported_and_leave_nothing(shared, tmp_path):
    (weights,) = shared.rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="has changed since it was written"):
        pull_run(shared, tmp_path / "theirs")
    assert sorted(tmp_path.iterdir()) == before


def test_weights_alone_begin_a_new_run_and_resume_none(shared, tmp_path):
    pulled = pull_run(shared, tmp_path / "theirs")
    with pytest.raises(CheckpointError, match=r"contains only weights.*init_from=.*theirs"):
        resume(pulled, trust=True)
    config = small_run(tmp_path / "next", total_steps=64)
    train(config.model_copy(update={"init_from": str(pulled)}))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["push", "run", "nonsense"], "'nonsense' is neither owner/name on the hub nor a folder"),
        (["push", "run", "./run"], "is not empty; name a new directory"),
        (["push", "none", "./new"], "is not the directory of a run"),
        (["push", "run", "./new", "--checkpoint", "none"], "no checkpoint 'none'"),
        (["pull", "./nowhere"], "there is no folder 'nowhere'"),
        (["pull", "./run/checkpoints", "new"], "config.yaml is missing"),
        (["pull", "./run", "run"], "is not empty; name a new directory"),
        (["pull", "./run", "new", "--revision", "main"], "--revision chooses from a repository"),
        (["pull", "./run/..", "."], "is not empty"),
        (["pull", "./-odd"], "DIR '-odd': must be 1 to 100 letters"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, problem, run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    before = sorted(run.parent.iterdir())
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert problem in err
    assert len(err.splitlines()) == 1
    assert sorted(run.parent.iterdir()) == before


def test_ctrl_c_leaves_nothing_of_what_was_being_shared(run, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastrl.training.hub.plot_runs", interrupt)
    assert main(["push", str(run), str(tmp_path / "shared")]) == 130
    assert list(tmp_path.iterdir()) == [run]


def test_without_the_package_a_folder_is_offered(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", str(run), "someone/reach"]) == 2
    assert "a folder such as ./name needs no package" in capsys.readouterr().err


@pytest.fixture
def hub():
    with hub_stub(TOKEN) as stub:
        yield stub


def called(stub, place, commands, **env):
    """Return exit code, output and errors of commands, in a process that talks to a stub."""
    given = {"HF_ENDPOINT": stub.url, "HF_HOME": str(place / "hf"), "HF_TOKEN": TOKEN}
    given |= {"PYTHONPATH": str(ROOT), "NO_PROXY": "*", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SESSION, json.dumps(commands)],
        cwd=place, env=os.environ | given | env,
        capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(240)  # of a process of eight commands
def test_run_goes_through_the_hub_and_evaluates_to_the_digit(hub, tmp_path):
    keys = ["total_steps=512", "sampler=serial", "sampler.num_envs=4", "sampler.rollout_length=32"]
    keys += ["algorithm.minibatch_size=64", "evaluation.final_episodes=3"]
    found = called(
        hub, tmp_path,
        [
            ["train", "CartPole-v1", "--name", "reach", *keys],
            ["push", "reach", "someone/theirs", "--private"],
            ["push", "reach", "someone/theirs", "--checkpoint", "last"],
            ["pull", "someone/theirs"],
            ["eval", "reach", "--episodes", "7"],
            ["eval", "theirs", "--episodes", "7"],
            ["pull", "someone/missing"],
            ["pull", "someone/theirs", "again", "--revision", "main"],
        ],
    )  # fmt: skip
    codes, outputs, errors = zip(*found, strict=True)
    assert list(codes) == [0, 0, 0, 0, 0, 0, 2, 0], errors
    assert outputs[1] == f"{hub.url}/someone/theirs\n"
    assert outputs[3] == "runs/theirs\n"
    assert outputs[4] == outputs[5]
    assert "return " in outputs[4]
    assert errors[6].startswith("fastrl: error: hub: ")
    assert len(errors[6].splitlines()) == 1
    assert hub.private == {"someone/theirs"}
    assert hub.tokens == {TOKEN}
    card = hub.repos["someone/theirs"]["README.md"].decode()
    (played,) = re.findall(r"return at the end of training \| (.*) over 3 episodes", card)
    assert f"return {played} over 3 episodes" in outputs[0]
    assert "fastrl pull someone/theirs\n" in card
    assert files_of(tmp_path / "again") == sorted(hub.repos["someone/theirs"])
    pulled = [path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    for content in (*pulled, *hub.repos["someone/theirs"].values()):
        assert TOKEN.encode() not in content


def test_hub_that_rejects_or_is_gone_is_one_line(hub, run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    monkeypatch.setenv("NO_PROXY", "*")
    api = huggingface_hub.HfApi
    for url, token, command in (
        (hub.url, "hf_wrong", ["push", "run", "someone/theirs"]),
        ("http://127.0.0.1:1", TOKEN, ["pull", "a/b"]),
    ):
        monkeypatch.setattr(huggingface_hub, "HfApi", partial(api, endpoint=url, token=token))
        assert main(command) == 2
        err = capsys.readouterr().err
        assert err.startswith("fastrl: error: hub: ")
        assert len(err.splitlines()) == 1
        assert ("; log in with 'hf auth login' [config]" in err) == (token != TOKEN)
    assert not (run.parent / "runs").exists()
