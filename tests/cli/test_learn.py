"""The commands that train, and that show what was learnt."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from fastrl import cli
from fastrl.config import EvaluationConfig, save_config
from fastrl.training import train
from fastrl.training.checkpoint import CheckpointStore
from tests.terminal import Terminal
from tests.training.clockwork import small_run


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory with a configuration, as a user has it."""
    evaluation = EvaluationConfig(every_steps=10**6, final_episodes=4)
    config = small_run(None, evaluation=evaluation).model_copy(update={"run_dir": None})
    save_config(config, tmp_path / "config.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_evaluate_resume_record_and_plot(run, workplace):
    code, out, _ = run("train", "config.yaml", "seed=5", "--name", "mine")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("tests.training.clockwork:Clockwork, PPO, seed 5: 512 steps in ")
    assert lines[1].startswith("evaluation (deterministic actions): return ")
    assert lines[1].endswith(" over 4 episodes, 4 steps each")
    assert lines[2] == "run: runs/mine"
    summary = json.loads((workplace / "runs/mine/summary.json").read_text())
    assert f"return {summary['eval_return_mean']:,.1f} ±" in lines[1]

    code, out, err = run("eval", "mine", "--episodes", 7)
    assert (code, err) == (0, "")
    assert out.startswith("step_000000000512, after 512 steps: return ")
    assert " over 7 episodes" in out

    code, out, _ = run("resume", "runs/mine", "total_steps=640", "--checkpoint", "last")
    assert code == 0
    assert "seed 5: 640 steps in" in out

    code, out, _ = run("record", "mine", "--video", "out.gif", "--episodes", 2, "--sampled")
    assert code == 0
    assert out.startswith("out.gif: return ")
    assert (workplace / "out.gif").stat().st_size > 0

    code, out, _ = run("plot", "mine", "-o", "curve.png")
    assert (code, out) == (0, "curve.png\n")
    assert (workplace / "curve.png").stat().st_size > 0


def test_results_as_json_and_no_progress_for_scripts(run, workplace):
    code, out, err = run("train", "config.yaml", "--name", "mine", "--quiet", "--json")
    assert (code, err) == (0, "")
    trained = json.loads(out)
    summary = json.loads((workplace / "runs/mine/summary.json").read_text())
    assert trained == {"run": "runs/mine", **summary}

    code, out, err = run("eval", "mine", "--episodes", 3, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["steps"], found["lengths"]) == (512, [4, 4, 4])
    assert found["return_mean"] == sum(found["returns"]) / 3

    code, out, _ = run("record", "mine", "--video", "out.gif", "--json")
    assert (code, json.loads(out)) == (0, {"video": "out.gif", "returns": found["returns"][:1]})

    code, out, err = run("resume", "mine", "total_steps=640", "--quiet", "--json")
    assert (code, err, json.loads(out)["steps"]) == (0, "", 640)


def test_a_terminal_of_60_columns_shows_a_line_at_once_and_a_summary_that_fits(workplace):
    command = [sys.executable, "-m", "fastrl", "train", "config.yaml", "--name", "mine"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    terminal = Terminal(command, 60, 30, env=env, cwd=workplace)
    try:
        terminal.wait_for("loading …")
        assert terminal.wait() == 0
        lines = str(terminal.screen).splitlines()
        assert "".join(lines).count("run: runs/mine") == 1
        assert all(len(line) <= 60 for line in lines)
        assert not set("│╭╰╮╯─").intersection(str(terminal.screen))
        assert any(line.startswith("evaluation (deterministic actions): return ") for line in lines)
    finally:
        terminal.close()


def test_score_that_is_not_reached_is_code_1(run, workplace):
    code, out, err = run("train", "config.yaml", "evaluation.stop_at=100")
    assert code == 1
    assert "evaluation (deterministic actions)" in out
    assert err.splitlines()[-1] == "the return did not reach evaluation.stop_at=100"


@pytest.fixture(scope="module")
def run_of_mine(tmp_path_factory):
    """One trained run, which `trained` copies."""
    directory = tmp_path_factory.mktemp("trained") / "runs" / "mine"
    config = small_run(None, evaluation=EvaluationConfig(enabled=False))
    train(config.model_copy(update={"run_dir": str(directory)}))
    return directory


@pytest.fixture
def trained(run_of_mine, workplace):
    return Path(shutil.copytree(run_of_mine, workplace / "runs" / "mine"))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["train"], "env: missing"),
        (["train", "missing.yaml"], "missing.yaml: no such file"),
        (["train", "config.yaml", "algorithm.lr=1"], "did you mean algorithm.learning_rate?"),
        (["train", "config.yaml", "env.id=NoSuchEnv-v0"], "unknown environment 'NoSuchEnv-v0'"),
        (["train", "config.yaml", "--name", "../up"], "--name '../up': must be 1 to 100 letters"),
        (["train", "config.yaml", "--name", "mine"], "contains a run already; continue"),
        (["train", "config.yaml", "run_dir=."], "choose another run_dir"),
        (["resume", "mine"], "has trained its 512 steps; to continue: fastrl resume runs/mine"),
        (["resume", "other"], "'other' is not the directory of a run; the latest is runs/mine"),
        (["resume", "mine", "--checkpoint", "step_9"], "no checkpoint 'step_9'"),
        (["resume", "mine", "total_steps=x"], "total_steps: must be an integer"),
        (["eval", "other"], "is not the directory of a run"),
        (["eval", "mine", "--episodes", "0"], "Invalid value for '--episodes'"),
        (["eval", "mine", "--checkpoint", "best"], "no checkpoint 'best'"),
        (["record", "mine", "--video", "out.avi"], "must end in .mp4 or .gif"),
        (["plot", "other"], "is not the directory of a run"),
        (["plot", "mine", "--evaluation"], "has no evaluation returns yet"),
        (["plot", "mine", "-o", "x.jpg"], "must end in .png or .pdf or .svg"),
        (["plot"], "Missing argument 'RUN'; see fastrl plot --help"),
        (["plot", "mine", "-o", "no/x.png"], "--output: there is no directory 'no'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(run, trained, arguments, problem):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("fastrl: error: ")
    assert problem in err
    assert len(err.splitlines()) == 1


def test_damaged_checkpoint_is_one_line_that_says_how_to_go_on(run, trained):
    names = CheckpointStore(trained / "checkpoints").names()
    (trained / "checkpoints" / names[-1] / "state.pt").write_bytes(b"")
    code, _, err = run("resume", "mine", "total_steps=1024")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert (
        f"is damaged: state.pt has changed since it was written; the one before it is {names[-2]}"
        in err
    )
    assert "choose with --checkpoint" in err
    code, _, err = run("eval", "mine")
    assert code == 2
    assert err.endswith(
        f"the one before it is {names[-2]}; choose with --checkpoint [checkpoint]\n"
    )
    assert run("resume", "mine", "--checkpoint", names[-2])[0] == 0
