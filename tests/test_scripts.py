"""Scripts explain themselves without doing anything, and say in a line what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path.name
    for path in (ROOT / "scripts").glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)
NEEDED = {
    "bench_training.py": ["configs/cartpole_ppo.yaml"],
    "evaluation_cost.py": ["configs/cartpole_ppo.yaml"],
    "plain_loop.py": ["configs/cartpole_ppo.yaml"],
    "learning_curves.py": ["configs/cartpole_ppo.yaml"],
    "tune_grid.py": ["grid", "--env", "CartPole-v1"],
    "verify_native.py": ["crafter"],
}
WRONG = [
    ("soak.py", ["--minutes", "-1"], "--minutes: must be a number of at least 0"),
    ("soak.py", ["--minutes", "0"], "--minutes: must be above 0"),
    ("scaling.py", ["--repeats", "0"], "--repeats: must be a whole number of at least 1"),
    ("scaling.py", ["--output", "/no/such/place"], "--output: there is no directory"),
    ("evaluation_cost.py", ["--rounds", "1"], "--rounds: must be a whole number of at least 2"),
    ("draw_scheme.py", ["--output", "/no/such/place.png"], "--output: there is no directory"),
    ("bench_crafter.py", ["--json", "/"], "--json: '/' is a directory"),
    ("tune_grid.py", ["--max-envs", "many"], "--max-envs: must be a whole number"),
]


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *arguments],
        capture_output=True, text=True, timeout=100, check=False, cwd=ROOT,
    )  # fmt: skip


def changed():
    places = ("results", "imgs", "README.md")
    files = [file for place in places for file in [ROOT / place, *(ROOT / place).rglob("*")]]
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_does_nothing_but_help(script):
    before = changed()
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
    assert changed() == before


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_argument_that_there_is_not_is_told_in_one_line(script):
    done = run(script, *NEEDED.get(script, []), "--no-such-argument")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "--no-such-argument" in done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "told"),
    [*WRONG[:3], *(pytest.param(*case, marks=pytest.mark.slow) for case in WRONG[3:])],
)
def test_what_cannot_be_measured_is_told_before_anything_is(script, arguments, told):
    done = run(script, *NEEDED.get(script, []), *arguments)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert told in done.stderr
