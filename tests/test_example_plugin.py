"""The example of a distribution with plug-ins: it is installed, and trains from its YAML."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "plugin"


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


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_is_short():
    files = [path for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".toml", ".yaml")]
    assert sum(len(path.read_text().splitlines()) for path in files) < 150


@pytest.mark.timeout(240)
def test_it_is_installed_listed_trained_and_resumed_from_yaml(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    options = ["--no-build-isolation", "--disable-pip-version-check", "--target", "installed"]
    subprocess.run([*pip, *options, "./source"], cwd=tmp_path, timeout=100, check=True)
    run = tmp_path / "run"
    steps = ["total_steps=6144", "evaluation.every_steps=6144", "evaluation.final_episodes=5"]
    commands = [
        ["plugins"],
        ["train", "source/corridor.yaml", "algorithm.kl_coeff=1"],
        ["train", "source/corridor.yaml", *steps, "algorithm.epochs=2", f"run_dir={run}"],
        ["resume", str(run), "total_steps=8192", "evaluation.enabled=false"],
    ]
    paths = [str(Path(__file__).parents[1]), str(tmp_path / "installed")]
    done = subprocess.run(
        [sys.executable, "-c", SESSION, json.dumps(commands)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    listed, mistaken, trained, resumed = json.loads(done.stdout)

    ours = [line.split()[:2] for line in listed[1].splitlines() if "fastrl-corridor 0.1" in line]
    assert ours == [
        ["algorithm", "penalty"],
        ["callback", "longer-corridor"],
        ["environments", "corridor"],
        ["model", "with-logits"],
    ]
    (line,) = mistaken[2].splitlines()
    assert mistaken[:2] == [2, ""]
    assert line.endswith(
        "algorithm.kl_coeff: unknown key; did you mean algorithm.kl_coef? [config]"
    )

    assert (trained[0], resumed[0]) == (0, 0), trained[2] + resumed[2]
    training = [row for row in rows_of(run) if row["kind"] == "training"]
    (before,) = [row for row in training if row["steps"] == 6144]
    assert {"policy_loss", "approx_kl", "callback/length"} <= before.keys()
    assert before["callback/length"] > 4
    assert json.loads((run / "summary.json").read_text())["algorithm"] == "penalty"
    assert training[-1]["steps"] == 8192
    assert training[-1]["callback/length"] >= before["callback/length"]
