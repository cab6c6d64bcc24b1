"""The site builds without a warning, and has all that is public and all that was measured."""

from __future__ import annotations

import html
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from fastrl.cli import app

pytest.importorskip("mkdocstrings")

ROOT = Path(__file__).parents[1]
MAX_BYTES = 15e6

# The build takes some twenty seconds of processor time, and the first test waits for it.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    path = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(path)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=280,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path


def test_every_public_name_is_described(site):
    modules = runpy.run_path(str(ROOT / "docs" / "write_lists.py"))["public_names"]()
    missing = []
    for module, names in modules.items():
        page = (site / "api" / f"{module}.html").read_text(encoding="utf-8")
        known = {name.rpartition(".")[2].lower() for name in re.findall(r'id="([\w.]+)"', page)}
        missing += [f"{module}.{name}" for name in names if name.lower() not in known]
    assert missing == []


def test_every_guide_decision_and_module_is_in_the_navigation(site):
    front = (site / "index.html").read_text(encoding="utf-8")
    pages = [*(ROOT / "docs" / "guide").glob("*.md"), *(ROOT / "docs" / "decisions").glob("0*.md")]
    links = [page.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for page in pages]
    links += [page.relative_to(site).as_posix() for page in (site / "api").glob("*.html")]
    assert [link for link in links if f'href="{link}"' not in front] == []


def test_every_command_and_option_is_listed(site):
    page = html.unescape((site / "commands.html").read_text(encoding="utf-8"))
    for name, command in get_command(app).commands.items():
        assert f'id="fastrl-{name}"' in page
        options = [each for each in command.params if each.param_type_name == "option"]
        assert all(f"<code>{option.opts[0]}" in page for option in options)


def test_every_result_is_listed_and_every_curve_shown(site):
    listed = (site / "results.html").read_text(encoding="utf-8")
    results = sorted(path.name for path in (ROOT / "results").glob("*.json"))
    assert [name for name in results if f'href="results/{name}"' not in listed] == []
    assert [name for name in results if not (site / "results" / name).exists()] == []
    gallery = (site / "gallery.html").read_text(encoding="utf-8")
    curves = sorted(path.name for path in (ROOT / "imgs").glob("learning_*.png"))
    assert [name for name in curves if f'src="imgs/{name}"' not in gallery] == []


def test_messages_of_errors_are_listed(site):
    page = html.unescape((site / "errors.html").read_text(encoding="utf-8"))
    assert "unknown key" in page
    assert "no file descriptors are left; raise the limit with ulimit -n" in page
    assert page.count("<li><code>") > 300
    assert "messages of" not in page


def test_pictures_are_described_and_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert all(re.search(r'alt="[^"]', image) for image in re.findall(r"<img [^>]*>", text))
        assert re.findall(r'(?:src|rel="stylesheet" href)="(?:https?:)?//', text) == []


def test_site_is_small(site):
    sizes = [path.stat().st_size for path in site.rglob("*") if path.is_file()]
    assert sum(sizes) <= MAX_BYTES
