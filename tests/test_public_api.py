"""What `from fastrl import …` offers, and that the README's example is true."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import fastrl
from fastrl import imports

README = Path(__file__).parents[1] / "README.md"


def test_every_public_name_can_be_imported():
    for name in fastrl.__all__:
        assert getattr(fastrl, name) is not None
    assert set(fastrl.__all__) <= set(dir(fastrl))
    assert not hasattr(fastrl, "no_such_name")


def test_example_of_the_readme_trains_a_policy_and_uses_it(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 20
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "example.py"
    script.write_text(example.replace("100_000", "4_000"))
    runpy.run_path(str(script), run_name="__main__")
    run, _, total = capsys.readouterr().out.strip().partition(": a return of ")
    assert (tmp_path / run / "summary.json").exists()
    assert float(total) > 8


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


def test_import_is_quick_and_rooms_need_none_of_their_own():
    script = """
import sys, fastrl
print({"gymnasium", "numpy", "torch"} & sys.modules.keys())
print(fastrl.envs.make_tensor.__name__, fastrl.vector.to_sb3.__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout == "set()\nmake_tensor to_sb3\n", done.stderr


def test_version_is_that_of_the_package(monkeypatch):
    for version, shown in (("1.2.3", "1.2.3"), (None, "0+unknown")):
        monkeypatch.setattr(imports, "installed_version", lambda version=version: version)
        assert fastrl.__version__ == shown
