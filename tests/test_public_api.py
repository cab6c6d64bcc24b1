"""What `from fastrl import …` offers, and that the README's example is true."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import fastrl

README = Path(__file__).parents[1] / "README.md"


def test_every_public_name_can_be_imported():
    for name in fastrl.__all__:
        assert getattr(fastrl, name) is not None
    assert set(fastrl.__all__) <= set(dir(fastrl))


def test_names_match_those_declared_to_type_checkers():
    source = Path(fastrl.__file__).read_text()
    declared = re.findall(r"^    from (\S+) import (\w+) as \w+$", source, re.MULTILINE)
    assert sorted(name for _, name in declared) == fastrl.__all__
    for module, name in declared:
        assert getattr(importlib.import_module(module), name) is getattr(fastrl, name)


def test_example_of_the_readme_runs_as_it_stands(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 10
    script = tmp_path / "example.py"
    script.write_text(example)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10
    assert done.stdout.startswith("torch.Size([129, ")
