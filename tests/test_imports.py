"""Hints about optional packages name this project, never another one's."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from fastrl import imports
from fastrl.imports import how_to_install

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.fixture
def installed_as(monkeypatch):
    """Let one distribution be installed."""

    def install(known):
        def version(name):
            if name != known:
                raise PackageNotFoundError(name)
            return "0.2.0"

        monkeypatch.setattr(imports, "version", version)

    return install


def test_a_hint_names_the_distribution_and_an_extra(installed_as):
    installed_as(PROJECT["name"])
    assert how_to_install("video") == f"pip install '{PROJECT['name']}[video]'"


def test_what_code_says_about_extras_exists():
    named = re.compile(r"how_to_install\(['\"]([\w-]+)['\"]\)")
    texts = [path.read_text() for path in (ROOT / "fastrl").rglob("*.py")]
    found = {extra for text in texts for extra in named.findall(text)}
    assert len(found) > 3
    assert found <= EXTRAS.keys()


def names(requirements):
    found = (re.match(r"[\w-]+", line)[0] for line in requirements)
    return {name.lower().replace("_", "-") for name in found}


def test_what_tests_import_is_pinned():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = names(line for line in lines if line and not line.startswith("#"))
    assert names(EXTRAS["dev"]) <= pinned


def test_programs_of_others_are_there_where_tests_run():
    programs = names(EXTRAS["others"] + EXTRAS["dm-control"]) - {"mujoco"}
    assert programs <= names(EXTRAS["dev"])


def test_without_metadata_the_hint_is_about_the_checkout(installed_as):
    # Another project's, or an earlier checkout's.
    installed_as("fastrl")
    assert "pip install -e '.[video]'" in how_to_install("video")


def test_no_hint_installs_a_package_that_is_called_fastrl():
    named = re.compile(r"pip install ['\"]?fastrl(?!-torch\b)")
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/**/*.ipynb")]
    texts += [path for name in ("fastrl", "scripts") for path in ROOT.glob(f"{name}/**/*.py")]
    assert [path for path in texts if named.search(path.read_text())] == []
