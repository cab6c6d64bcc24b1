"""What `from fastrl import …` offers, and that the README's example is true."""

import importlib
import importlib.metadata
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


def test_examples_of_the_readme_run_as_they_stand(tmp_path):
    loop, sampler = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert all(len(example.strip().splitlines()) <= 10 for example in (loop, sampler))
    assert run(loop, tmp_path) == []
    printed = run(sampler, tmp_path)
    assert len(printed) == 10
    assert printed[0].startswith("torch.Size([129, ")


def run(example, directory):
    script = directory / "example.py"
    script.write_text(example)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_rooms_need_no_import_of_their_own():
    script = "import fastrl; print(fastrl.envs.make_tensor.__name__, fastrl.vector.to_sb3.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout == "make_tensor to_sb3\n", done.stderr


def test_version_is_that_of_the_package():
    assert fastrl.__version__ == importlib.metadata.version("fastrl")
