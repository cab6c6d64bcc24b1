"""Hints about optional packages name these packages, never another project's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from fastrl.imports import how_to_install

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_a_hint_names_the_packages_of_the_extra():
    lacking = []
    for extra, requirements in EXTRAS.items():
        command = how_to_install(extra)
        assert command.startswith("pip install ")
        names = (re.match(r"[\w-]+(\[[\w-]+\])?", requirement)[0] for requirement in requirements)
        lacking += [(extra, name) for name in names if name not in command and ".[" not in command]
    assert lacking == [], "the installed metadata are not those of pyproject.toml: install again"


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


def test_without_metadata_the_hint_is_about_the_checkout(monkeypatch):
    monkeypatch.setattr("fastrl.imports.requires", lambda _: None)
    assert "pip install -e '.[video]'" in how_to_install("video")


def test_no_hint_installs_a_package_that_is_called_fastrl():
    named = re.compile(r"pip install ['\"]?fastrl")
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    texts += [path for room in ("fastrl", "scripts") for path in ROOT.glob(f"{room}/**/*.py")]
    assert [path for path in texts if named.search(path.read_text())] == []
