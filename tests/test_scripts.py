"""Scripts explain themselves without doing anything, and say in a line what is wrong."""

import runpy
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
LONG_TESTS = [
    "tests.chaos.soak",
    "tests.chaos.storm",
    "tests.envs.classic_control.train",
    "tests.envs.identity",
]
"""Modules that are run as programs."""
NEEDED = {
    "bench_training.py": ["configs/cartpole_ppo.yaml"],
    "learning_curves.py": ["configs/cartpole_ppo.yaml"],
    "tests.envs.identity": ["crafter"],
}
WRONG = [
    ("tests.chaos.soak", ["--minutes", "-1"], "--minutes: must be a number of at least 0"),
    ("tests.chaos.soak", ["--minutes", "0"], "--minutes: must be above 0"),
    ("cost_curves.py", ["--repeats", "0"], "--repeats: must be a whole number of at least 1"),
    ("cost_curves.py", ["--output", "/no/such/place"], "--output: there is no directory"),
    ("bench_native.py", ["--json", "/"], "--json: '/' is a directory"),
    ("bench_native.py", ["--rounds", "many"], "--rounds: must be a whole number"),
]


def run(script, *arguments):
    program = ["-m", script] if script in LONG_TESTS else [str(ROOT / "scripts" / script)]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        capture_output=True, text=True, timeout=100, check=False, cwd=ROOT,
    )  # fmt: skip


def changed():
    places = ("results", "imgs", "README.md")
    files = [file for place in places for file in [ROOT / place, *(ROOT / place).rglob("*")]]
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.mark.slow
@pytest.mark.parametrize("script", [*SCRIPTS, *LONG_TESTS])
def test_help_does_nothing_but_help(script):
    before = changed()
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
    assert changed() == before


@pytest.mark.slow
@pytest.mark.parametrize("script", [*SCRIPTS, *LONG_TESTS])
def test_an_argument_that_there_is_not_is_told_in_one_line(script):
    done = run(script, *NEEDED.get(script, []), "--no-such-argument")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "--no-such-argument" in done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "told"),
    [*WRONG[:3], *(pytest.param(*case, marks=pytest.mark.slow) for case in WRONG[3:])],
)
def test_what_cannot_be_measured_is_told_before_anything_is(
    script, arguments, told, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", [script, *NEEDED.get(script, []), *arguments])
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.delitem(sys.modules, script, raising=False)
    program = script if script in LONG_TESTS else str(ROOT / "scripts" / script)
    start = runpy.run_module if script in LONG_TESTS else runpy.run_path
    with pytest.raises(SystemExit) as ended:
        start(program, run_name="__main__")
    errors = capsys.readouterr().err
    assert ended.value.code == 2
    assert len(errors.strip().splitlines()) == 1, errors
    assert told in errors
