"""The package builds, and what it installs works without the repository."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from fastrl.cli.show import PROJECT_FILES
from fastrl.imports import DISTRIBUTION

pytest.importorskip("build")
# The first import of a new installation compiles every module.
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Without compiled loops, which a new installation compiles for a minute.
TRAIN = ["train", "CartPole-v1", "total_steps=512", "evaluation.final_episodes=2"]
TRAIN += ["sampler.kind=serial", "sampler.num_envs=4", "algorithm.epochs=1"]
TRAIN += ["sampler.engine=eager", "model.activation=gelu", "--name", "smoke"]
# Commands of an installed fastrl, in one process, so that they import torch and start workers once.
SESSION = f"""
from importlib.resources import files
import fastrl
from fastrl.cli import main
print(fastrl.__file__, fastrl.__version__, sep="\\n")
assert main({TRAIN}) == 0
assert main(["envs", "CartPole-v1"]) == 0
assert main(["new", "project"]) == 0
assert main(["eval", "smoke", "--episodes", "2"]) == 0
assert main(["doctor"]) == 0
assert files("fastrl").joinpath("py.typed").is_file()
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the directory of an sdist, and of a wheel that was built from it."""
    path = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(built, tmp_path_factory):
    """Return the directory of the unpacked sdist."""
    (archive,) = built.glob("*.tar.gz")
    place = tmp_path_factory.mktemp("sdist")
    with tarfile.open(archive) as opened:
        opened.extractall(place, filter="data")
    return place / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return an environment with the wheel, and with the other packages of this one."""
    path = tmp_path_factory.mktemp("environment")
    venv.create(path, symlinks=True)
    python = path / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    subprocess.run([*pip, *options], check=True, timeout=100)
    (site,) = path.glob("lib/python*/site-packages")
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # Plain paths: what is installed there in editable form, such as fastrl itself, is not found.
    (site / "others.pth").write_text("\n".join(sorted(others)))
    return path


def files_of(directory):
    """Return the relative paths of all files but caches."""
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*")
             if path.is_file()}  # fmt: skip
    return {name for name in found if "__pycache__" not in name}


def called(installed, place, *command):
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(installed / "bin" / command[0]), *command[1:]],
        cwd=place, env=outside, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_has_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    package = {name for name in names if ".dist-info/" not in name}
    assert package == {f"fastrl/{name}" for name in files_of(ROOT / "fastrl")}
    project = {f"fastrl/cli/project/{path.name}" for path in PROJECT_FILES.iterdir()}
    assert {"fastrl/py.typed", "fastrl/__init__.pyi", *project} <= package


def test_metadata_are_those_of_the_project(wheel):
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        found = email.message_from_bytes(opened.read(name))
    assert found["Name"] == PROJECT["name"] == DISTRIBUTION
    assert found["Version"] == PROJECT["version"]
    assert set(found.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert found["Description-Content-Type"] == "text/markdown"
    # A package with the name of the one that it is part of would be another project's.
    needed = [line for line in found.get_all("Requires-Dist") if line.startswith("fastrl")]
    assert needed == []


def test_installed_command_trains_in_an_empty_directory(installed, tmp_path):
    assert called(installed, tmp_path, "fastrl", "--version").startswith("fastrl ")
    out = called(installed, tmp_path, "python", "-c", SESSION)
    file, version, *rest = out.splitlines()
    assert Path(file).is_relative_to(installed)
    assert version == PROJECT["version"]
    assert (tmp_path / "runs" / "smoke" / "summary.json").exists()
    assert any("CartPole-v1, PPO, seed 0: 512 steps in" in line for line in rest)
    assert any("after 512 steps" in line for line in rest)
    assert len(list((tmp_path / "project").iterdir())) == len(list(PROJECT_FILES.iterdir()))
    assert any(line.startswith("ok      workers") for line in rest)


def test_sdist_has_what_its_tests_need(unpacked):
    for folder in ("fastrl", "tests", "docs", "configs", "scripts", "results", "imgs", ".ci"):
        assert files_of(unpacked / folder) == files_of(ROOT / folder), folder
    top = ("CHANGELOG.md", "LICENSE", "Makefile", "README.md", "mkdocs.yml", "pyproject.toml")
    for name in (*top, "requirements.txt"):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()


def test_release_workflow_checks_what_it_publishes():
    flow = yaml.safe_load((ROOT / ".ci" / "release.yml").read_text())
    # YAML reads the key "on" as True.
    assert flow[True]["push"]["tags"] == ["v*"]
    jobs = flow["jobs"]
    assert jobs["publish"]["needs"] == ["build", "installed"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    versions = jobs["installed"]["strategy"]["matrix"]["python"]
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: 3." in line]
    assert versions == named
    for job in jobs.values():
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if "run" in step:
                shell = ["bash", "-n", "-c", step["run"]]
                assert subprocess.run(shell, check=False).returncode == 0
