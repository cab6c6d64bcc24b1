"""The guide's examples run as they stand, and the example script plays."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs/guide/vector.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_of_the_guide_runs_as_it_stands(example):
    for library in ("skrl", "stable_baselines3", "tianshou", "torchrl"):
        if f"from {library}" in example:
            pytest.importorskip(library)
    exec(compile(example, "docs/guide/vector.md", "exec"), {"__name__": "__main__"})


@pytest.mark.slow
@pytest.mark.parametrize("how", ["naive", "threads", "await", "processes"])
def test_example_script_plays_all_episodes(how):
    script = ROOT / "docs/examples/concurrent_envs.py"
    options = ["--num-envs", "3", "--episodes", "2", "--how", how, "--wait-ms", "1", "--verbose"]
    done = subprocess.run(
        [sys.executable, str(script), *options],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(rf"{how}: \d+ steps in", done.stdout)
