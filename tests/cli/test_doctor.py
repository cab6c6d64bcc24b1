"""`fastrl doctor`: what will be slow or fail on a machine."""

from __future__ import annotations

import json
import resource
import time
import tomllib
from pathlib import Path

import psutil
import pytest
import torch

from fastrl import imports, registry
from fastrl.cli import checks, main
from fastrl.cli.checks import Diagnosis
from fastrl.errors import FastrlError
from fastrl.shared import memory

ROOT = Path(__file__).parents[2]


def checked(check):
    return [(each.level, str(each)) for each in check("what")]


def test_machine_that_runs_the_tests_is_in_order(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    levels = {line.split()[0] for line in lines}
    assert {"ok"} <= levels <= {"ok", "slow", "missing"}
    assert any(line.startswith("ok      workers          sampled a rollout in ") for line in lines)


def test_each_line_is_shown_at_once_and_a_long_check_by_its_name(monkeypatch, capsys):
    said = []

    def _slow(about):
        said.append(capsys.readouterr().out)
        time.sleep(0.2)
        yield Diagnosis("ok", about, "done")

    monkeypatch.setattr("fastrl.live_display.FIRST_LINE_S", 0.01)
    monkeypatch.setattr(checks, "_CHECKS", (checks._versions, _slow))
    assert main(["doctor"]) == 0
    assert said[0].startswith("ok      versions")
    out, err = capsys.readouterr()
    assert out.split() == ["ok", "slow", "done"]
    assert "checking slow …" in err


def test_failure_is_a_line_and_the_exit_code(monkeypatch, capsys):
    def no_memory(size):
        raise FastrlError("no file descriptors are left")

    monkeypatch.setattr(memory, "SharedBlock", no_memory)
    monkeypatch.setattr(checks, "_CHECKS", (checks._versions, checks._shared_memory))
    assert main(["doctor", "--json"]) == 1
    versions, shared = json.loads(capsys.readouterr().out)
    assert versions["level"] == "ok"
    assert "torch" in versions["found"]
    assert shared == {
        "level": "fails",
        "about": "shared memory",
        "found": "FastrlError: no file descriptors are left",
        "remedy": "",
    }


def test_one_core_little_memory_and_few_files_are_told_with_a_remedy(monkeypatch):
    monkeypatch.setattr(checks, "usable_cores", lambda: 1)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 90.0)
    (level, line), (busy, share) = checked(checks._cores)
    assert level == busy == "slow"
    assert "1 of" in line
    assert "90% are busy" in share
    monkeypatch.setattr(checks, "free_bytes", lambda: 2**29)
    ((level, line),) = checked(checks._memory)
    assert level == "slow"
    assert line.endswith(" 0.5 GiB free; lower sampler.num_envs, or raise the memory limit")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    ((level, line),) = checked(checks._open_files)
    assert level == "fails"
    assert line.endswith("; ulimit -n 4096")


@pytest.mark.parametrize(
    ("build", "found", "remedy"),
    [(None, "built for CPUs", "install torch for CUDA"), ("12.8", "not found", "driver")],
)
def test_gpu_that_torch_does_not_use_is_slow(monkeypatch, build, found, remedy):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    ((level, line),) = checked(checks._gpu)
    assert level == "slow"
    assert found in line
    assert remedy in line


def test_code_that_cannot_be_kept_is_slow(monkeypatch):
    monkeypatch.setattr("fastrl.jit.cache_directory", lambda: None)
    ((level, line),) = checked(checks._compiled_code)
    assert level == "slow"
    assert "NUMBA_CACHE_DIR" in line


def test_missing_extras_are_named_with_their_command(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda module: None if module == "wandb" else module)
    (_, installed), *missing = checked(checks._extras)
    assert "video" in installed
    assert missing == [
        ("missing", f"missing what             wandb; {imports.how_to_install('wandb')}")
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(checks._EXTRAS) <= set(project["optional-dependencies"])


def test_plug_in_that_cannot_be_loaded_fails(monkeypatch):
    broken = registry.Broken("mine", "my-package", "ImportError: no module")
    monkeypatch.setattr(registry, "broken", lambda: [broken])
    ((level, line),) = checked(checks._plug_ins)
    assert level == "fails"
    assert "mine cannot be loaded: ImportError: no module; update or remove my-package" in line
