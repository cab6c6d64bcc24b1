"""What README and guides point to is there, and code in them is Python."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import fastrl
from fastrl.config import load_config
from fastrl.training.metrics import read_rows

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_scripts_and_configurations_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(
        r"\b(?:scripts|configs|results)/\w+(?:[-.]\w+)*\.(?:py|yaml|json|md)\b", text
    )
    # What a reader is shown how to write, or will have written.
    made_here = {"configs/my.yaml", "configs/my_cartpole.yaml"}
    assert [name for name in named if name not in made_here and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_is_python(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        compile(block, name_of(page), "exec")


def sections_with_python(page):
    """Return the Python of each section of a page: what a reader copies at once."""
    sections = page.read_text(encoding="utf-8").split("\n## ")
    found = ["".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)) for text in sections]
    return [code for code in found if code]


QUICK = [
    ROOT / "docs" / "guide" / name
    for name in ("policies.md", "tensor_envs.md", "old_gym.md", "tuning.md")
]


@pytest.mark.parametrize("page", QUICK, ids=name_of)
def test_python_of_each_section_runs_as_copied(page, tmp_path, monkeypatch):
    if page.stem == "old_gym":
        pytest.importorskip("gym")
    monkeypatch.chdir(tmp_path)
    for code in sections_with_python(page):
        names = {"__name__": "__main__"}
        exec(compile(code, name_of(page), "exec"), names)
        # An earlier import in this process would hide that the ids are not registered.
        if "gymnasium.make" in code:
            assert "fastrl" in names


def test_environments_of_the_guide_run_as_scripts(tmp_path):
    for code in sections_with_python(ROOT / "docs" / "guide" / "environments.md"):
        (tmp_path / "my_envs.py").write_text(code, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "my_envs.py"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stderr
        assert ("Rollout(index=0" in done.stdout) == ("collect" in code)


def test_callbacks_of_the_guide_run_as_the_file_that_they_are(tmp_path, monkeypatch):
    page = ROOT / "docs" / "guide" / "callbacks.md"
    script, transform = sections_with_python(page)
    for name, code in (("curriculum", script), ("novelty", transform)):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    runpy.run_path("curriculum.py", run_name="__main__")
    (run,) = Path("runs").iterdir()
    assert [row["callback/wind"] for row in read_rows(run / "metrics.jsonl")][-1] > 0
    config = load_config(run / "config.yaml", ["run_dir=again", "transforms=['novelty:Novelty']"])
    fastrl.train(config)


def test_every_guide_is_in_the_readme():
    readme = PAGES[0].read_text(encoding="utf-8")
    guides = [page for page in PAGES if page.parent.name == "guide"]
    assert [name_of(page) for page in guides if f"({name_of(page)})" not in readme] == []


def test_every_decision_is_in_their_index():
    decisions = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    for number, page in enumerate(decisions, 1):
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        assert title.startswith(f"{number}. ")
        assert f"[{title}]({page.name})" in index
