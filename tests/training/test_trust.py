"""What a configuration may import, and whose run directories may do so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fastrl.cli import main
from fastrl.config import EnvConfig, load_config
from fastrl.errors import ConfigError
from fastrl.training import (
    CheckpointError,
    evaluate_run,
    export_run,
    load_policy,
    record_run,
    resume,
    train,
)
from fastrl.training.trust import named_code
from tests.training.clockwork import small_run

REACH, CLIP = "tests.training.reach:Reach", "gymnasium.wrappers:ClipReward"


@pytest.fixture(scope="module")
def custom(tmp_path_factory):
    """Return the directory of a run that imports code; to be copied."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config = small_run(path, total_steps=64)
    env = config.env.model_copy(update={"id": REACH, "kwargs": {}})
    train(config.model_copy(update={"env": env}))
    return path


@pytest.fixture
def run(custom, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(custom, path)
    return path


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Let this process be another user's."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "other"))


def change(run, section, key, value):
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree[section][key] = value
    (run / "config.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    "path",
    [
        "os:system",
        "subprocess:Popen",
        "builtins:eval",
        "tests.training.borrowed:os.system",
        "tests.training.borrowed:system",
        "tests.training.borrowed:touch",
        "tests.training.borrowed:Touch",
    ],
)
@pytest.mark.parametrize("key", ["env.id", "env.wrappers", "model.class_path"])
def test_nothing_of_the_standard_library_is_called(tmp_path, monkeypatch, capsys, path, key):
    monkeypatch.chdir(tmp_path)
    listed = f"[{{path: '{path}', kwargs: {{command: touch found}}}}]"
    overrides = [f"{key}={listed if key == 'env.wrappers' else path}"]
    if key == "env.id":
        overrides.append("env.kwargs={command: touch found}")
    else:
        overrides.append("env.id=CartPole-v1")
    assert main(["train", *overrides]) == 2
    err = capsys.readouterr().err
    assert "standard library" in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_this_user_needs_no_trust(run):
    assert evaluate_run(run, episodes=1).result.returns
    resume(run, ["total_steps=128"])
    evaluate_run(run, episodes=1)


def test_a_moved_run_keeps_its_signature(run, tmp_path):
    evaluate_run(run.rename(tmp_path / "moved"), episodes=1)


@pytest.mark.parametrize("load", [resume, evaluate_run, record_run])
def test_a_run_of_another_user_names_what_it_would_import(run, elsewhere, load):
    before = sorted(path.name for path in run.rglob("*"))
    with pytest.raises(ConfigError, match=rf"'{REACH}' \(env\.id\).*--trust"):
        load(run)
    assert sorted(path.name for path in run.rglob("*")) == before


def test_trust_is_given_once_for_all_that_is_resumed(run, elsewhere):
    evaluate_run(run, episodes=1, trust=True)
    with pytest.raises(ConfigError, match="--trust"):
        evaluate_run(run, episodes=1)
    resume(run, ["total_steps=128"], trust=True)
    evaluate_run(run, episodes=1)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("env", "id", "tests.training.reach:Noise"),
        ("env", "kwargs", {"command": "anything"}),
        ("env", "wrappers", ["tests.training.reach:Reach"]),
        (
            "env",
            "wrappers",
            [{"path": CLIP, "kwargs": {"min_reward": 0}}],
        ),
        ("model", "class_path", "tests.training.reach:Reach"),
        ("evaluation", "env_kwargs", {"command": "anything"}),
    ],
)
def test_a_signature_is_of_all_that_the_configuration_says_about_code(run, section, key, value):
    change(run, section, key, value)
    with pytest.raises(ConfigError, match="was not trained by this user"):
        evaluate_run(run, episodes=1)


@pytest.mark.parametrize(
    ("wrapper", "named"),
    [
        ({"path": REACH, "kwargs": {"x": 1}}, REACH),
        ({"path": "gymnasium.wrappers:RecordVideo"}, "gymnasium.wrappers:RecordVideo"),
        ({"path": CLIP, "kwargs": {"min_reward": 0}}, None),
    ],
)
def test_wrappers_with_arguments_are_named_by_their_paths(wrapper, named):
    config = load_config(None, ["env.id=CartPole-v1"])
    env = EnvConfig.model_validate({"id": "CartPole-v1", "wrappers": [wrapper]})
    found = named_code(config.model_copy(update={"env": env}))
    assert found == ([f"'{named}' (env.wrappers)"] if named else [])


def test_what_says_nothing_about_code_may_change(run):
    change(run, "evaluation", "every_steps", 10)
    evaluate_run(run, episodes=1)


def test_a_run_that_imports_nothing_needs_no_trust(run, elsewhere):
    change(run, "env", "id", "CartPole-v1")
    with pytest.raises(CheckpointError, match="is of the environment"):  # so it was looked at
        evaluate_run(run, episodes=1)


@pytest.mark.parametrize(("section", "key"), [("env", "kwargs"), ("evaluation", "env_kwargs")])
def test_a_game_of_another_module_needs_trust(run, elsewhere, section, key):
    change(run, "env", "id", "fastrl.envs.atari:sb3_atari")
    change(run, "env", "kwargs", {"name": "ALE/Breakout-v5"})
    with pytest.raises(CheckpointError, match="is of the environment"):
        evaluate_run(run, episodes=1)
    change(run, section, key, {"name": "tests.training.reach:Game-v0"})
    with pytest.raises(ConfigError, match=rf"reach:Game-v0' \({section}\.{key}\.name\).*--trust"):
        evaluate_run(run, episodes=1)


def test_a_user_without_a_home_can_train_and_trust(custom, tmp_path, monkeypatch):
    def refuse(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setattr(Path, "expanduser", refuse)
    config = small_run(tmp_path / "run", total_steps=64)
    train(config)
    with pytest.raises(ConfigError, match="--trust"):
        evaluate_run(tmp_path / "run", episodes=1)
    evaluate_run(tmp_path / "run", episodes=1, trust=True)


def test_the_option_says_that_the_code_was_read(run, elsewhere, capsys):
    assert main(["eval", str(run), "--episodes", "1"]) == 2
    assert REACH in capsys.readouterr().err
    assert main(["eval", str(run), "--episodes", "1", "--trust"]) == 0


def test_a_module_in_the_current_directory_hides_no_installed_package(tmp_path):
    (tmp_path / "typer.py").write_text("raise SystemExit('hidden')")
    (tmp_path / "gymnasium.py").write_text("raise SystemExit('hidden')")
    # As the command is started; python -m looks in the current directory first by itself.
    command = ["-P", "-c", "import sys; from fastrl.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [sys.executable, *command, "envs", "CartPole-v1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "CartPole-v1" in done.stdout


def test_modules_are_found_beside_the_configuration(tmp_path):
    source = (
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Mine(CartPoleEnv):\n    pass\n"
    )
    (tmp_path / "my_task.py").write_text(source)
    config = tmp_path / "task.yaml"
    config.write_text(
        "env: {id: 'my_task:Mine', max_episode_steps: 20}\n"
        "total_steps: 64\n"
        "sampler: {num_env_workers: 1, envs_per_worker: 2, rollout_length: 16}\n"
        "evaluation: {enabled: false}\n"
    )
    assert main(["train", str(config), f"run_dir={tmp_path / 'run'}"]) == 0


def test_a_module_that_is_nowhere_is_one_line_that_says_where_it_was_looked_for(capsys):
    assert main(["train", "env.id=no_such_module_at_all:Env"]) == 2
    err = capsys.readouterr().err
    assert "the current directory, beside the configuration" in err
    assert len(err.splitlines()) == 1


def test_policies_of_others_are_loaded_and_exported_once_trusted(run, elsewhere, tmp_path):
    told = rf"was not trained by this user, and would import '{REACH}' \(env\.id\); .*trust=True"
    with pytest.raises(ConfigError, match=told):
        load_policy(run)
    with pytest.raises(ConfigError, match=told):
        export_run(run, "torchscript", tmp_path / "x.pt")
    assert load_policy(run, trust=True).act([0.0] * 4)[0].shape == (2,)
