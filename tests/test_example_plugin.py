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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Install the distribution beside fastrl; return what runs a command with it."""
    place = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, place / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    options = ["--no-build-isolation", "--disable-pip-version-check", "--target", "installed"]
    subprocess.run([*pip, *options, "./source"], cwd=place, timeout=100, check=True)
    paths = [str(Path(__file__).parents[1]), str(place / "installed")]

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "fastrl", *arguments],
            cwd=place,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=110,
        )

    return run


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_is_short():
    files = [path for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".toml", ".yaml")]
    assert sum(len(path.read_text().splitlines()) for path in files) < 150


def test_it_trains_and_resumes_from_yaml(run, tmp_path):
    steps = ["total_steps=6144", "evaluation.every_steps=6144", "evaluation.final_episodes=5"]
    small = [*steps, "algorithm.epochs=2", f"run_dir={tmp_path / 'run'}"]
    done = run("train", "source/corridor.yaml", *small)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "run")
    training = [row for row in rows if row["kind"] == "training"]
    assert {"policy_loss", "approx_kl", "callback/length"} <= training[-1].keys()
    assert training[-1]["callback/length"] > 4
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["algorithm"] == "penalty"
    done = run("resume", str(tmp_path / "run"), "total_steps=8192")
    assert done.returncode == 0, done.stderr
    last = [row for row in rows_of(tmp_path / "run") if row["kind"] == "training"][-1]
    assert last["steps"] == 8192
    assert last["callback/length"] >= training[-1]["callback/length"]


def test_it_is_listed(run):
    listed = run("plugins").stdout
    ours = [line.split()[:2] for line in listed.splitlines() if "fastrl-corridor 0.1" in line]
    assert ours == [
        ["algorithm", "penalty"],
        ["callback", "longer-corridor"],
        ["environments", "corridor"],
        ["model", "with-logits"],
    ]


def test_mistakes_in_its_section_are_one_line(run):
    done = run("train", "source/corridor.yaml", "algorithm.kl_coeff=1")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.endswith("algorithm.kl_coeff: unknown key; did you mean algorithm.kl_coef?")
