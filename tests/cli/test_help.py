"""The help of commands, and completion in shells."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from fastrl.cli import app, main

ROOT = Path(__file__).parents[2]
COMMANDS = get_command(app).commands
EXAMPLES = {
    name: [line.strip() for line in command.epilog.splitlines()[2:]]
    for name, command in COMMANDS.items()
}


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_help_ends_with_examples(name, option, capsys):
    assert main([name, option]) == 0
    _, said, examples = capsys.readouterr().out.partition("\n  Examples:\n")
    assert said
    assert [line.strip() for line in examples.splitlines()] == EXAMPLES[name]


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_are_valid(name):
    assert EXAMPLES[name]
    for example in EXAMPLES[name]:
        # A shell's part of a line, around the command or behind it.
        (line,) = re.findall(r"(fastrl [^>)|]*)", example)
        words = shlex.split(line)
        assert words[:2] == ["fastrl", name]
        # Raises an error for unknown options, and for missing or additional arguments.
        COMMANDS[name].make_context(name, words[2:])
        assert [word for word in words if word.startswith("configs/")
                and not (ROOT / word).exists()] == []  # fmt: skip


ELSEWHERE = {"completion", "doctor", "play", "sweep", "throughput", "tune"}
"""Commands whose examples need a terminal, or take long; tests of their own run them."""
FIRST = ["train", "record", "push"]
"""Commands that make what other examples name."""
SMALL = ["total_steps=256", "sampler.kind=serial", "evaluation.enabled=false"]
FURTHER = {"train": SMALL, "resume": ["total_steps=512"], "watch": ["--json"]}
ENTRY = "n_timesteps: !!float 1e5\n  policy: 'MlpPolicy'\n  n_envs: 8\n"


@pytest.mark.timeout(240)  # of forty commands
def test_examples_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    for package in ("pygame", "minari"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    Path("hyperparams").mkdir()
    for file in ("ppo.yml", "hyperparams/ppo.yml"):
        Path(file).write_text(f"CartPole-v1:\n  {ENTRY}atari:\n  {ENTRY}")
    for name in [*FIRST, *sorted(EXAMPLES.keys() - {*FIRST, *ELSEWHERE})]:
        for example in EXAMPLES[name]:
            if any(slow in example for slow in ("someone/", "sampler=auto", "onnx")):
                continue
            words = shlex.split(re.match(r"fastrl ([^>]*)", example)[1])
            words = [word for word in words if "total_steps=" not in word or name == "config"]
            assert main([*words, *FURTHER.get(name, ())]) == 0, (example, capsys.readouterr().err)


@pytest.fixture
def on_path(tmp_path):
    """Return an environment in which ``fastrl`` is a command."""
    command = tmp_path / "bin" / "fastrl"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fastrl "$@"\n')
    command.chmod(0o755)
    for run in ("reach", "reach-2", "other"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "config.yaml").touch()
    path = f"{command.parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}


def completed(env, place, words):
    """Return what bash offers for the last of some words."""
    script = f"""
    eval "$(fastrl completion bash)"
    COMP_WORDS=({words[0]} {" ".join(words[1:])}) COMP_CWORD={len(words) - 1}
    _fastrl_completion fastrl
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script], cwd=place, env=env,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_bash_completes_commands_options_and_runs(on_path, tmp_path):
    assert completed(on_path, tmp_path, ["fastrl", "tr"]) == ["train"]
    assert completed(on_path, tmp_path, ["fastrl", "eval", "rea"]) == ["reach", "reach-2"]
    assert completed(on_path, tmp_path, ["fastrl", "sweep", "--se"]) == ["--seeds"]


@pytest.mark.parametrize(("shell", "answer"), [("zsh", "_arguments"), ("fish", "train\tTrain")])
def test_other_shells_are_answered(shell, answer, on_path, capsys):
    assert main(["completion", shell]) == 0
    assert f"_FASTRL_COMPLETE=complete_{shell}" in capsys.readouterr().out
    asking = {"_FASTRL_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "fastrl tr"}
    asking["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    done = subprocess.run(
        ["fastrl"], env=on_path | asking, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.startswith(answer), done.stderr


def test_unknown_shell_is_one_line(capsys):
    assert main(["completion", "csh"]) == 2
    assert "SHELL must be 'bash' or 'zsh' or 'fish'" in capsys.readouterr().err
