"""Compiled functions are kept on disk, and never outlive what they are made of."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastrl import jit, once

CPU = torch.device("cpu")
KERNEL = """
from pathlib import Path
import parts
from fastrl.jit import cached_kernel

@cached_kernel([Path(__file__), Path(parts.__file__)])
def run(digest):
    def run(x):
        _ = digest
        return parts.scaled(x)
    return run

print(run(3), sum(run.stats.cache_hits.values()))
"""
PARTS = """
from numba import njit

@njit
def scaled(x):
    return {factor} * x
"""


def test_kernel_is_found_on_disk_until_a_file_that_it_is_made_of_changes(tmp_path):
    (tmp_path / "kernel.py").write_text(KERNEL)

    def run(factor):
        (tmp_path / "parts.py").write_text(PARTS.format(factor=factor))
        command = [sys.executable, "-B", "kernel.py"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=True
        )
        return tuple(map(int, done.stdout.split()))

    assert run(factor=2) == (6, 0)
    assert run(factor=2) == (6, 1)
    assert run(factor=5) == (15, 0)


SIMPLE = """
def triple(x):
    return 3 * x
"""


def module_of(path, source):
    """Write and import a module, which numba finds again when it loads what it has compiled."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("simple", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simple"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def triple(tmp_path):
    """A function that can be compiled, and whose cache lies beside it."""
    yield module_of(tmp_path / "simple.py", SIMPLE).triple
    del sys.modules["simple"]


@pytest.fixture
def said(monkeypatch, caplog):
    """What has been said, by a run that has said nothing yet."""
    monkeypatch.setattr(once, "_said", set())
    monkeypatch.setattr(once, "place", lambda: "")
    caplog.set_level(logging.WARNING, "fastrl.jit")
    return caplog


def hits_of_a_call(function):
    """Compile as a new process would; return whether the result came from the disk."""
    found = jit.cached_njit(function)
    assert found(5) == 15
    return sum(found.stats.cache_hits.values())


def files_of(tmp_path):
    return sorted((tmp_path / "__pycache__").glob("simple.triple*.nb*"))


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damage=st.sampled_from(["emptied", "cut", "zeros", "flipped", "other", "removed"]),
    which=st.sampled_from([(0,), (1,), (0, 1)]),
    place=st.floats(0, 1, exclude_max=True),
)
def test_damaged_files_are_replaced(triple, tmp_path, damage, which, place):
    hits_of_a_call(triple)
    files = files_of(tmp_path)
    for path in (files[index] for index in which):
        content = bytearray(path.read_bytes())
        at = int(place * len(content))
        if damage == "removed":
            path.unlink()
            continue
        if damage == "flipped":
            content[at] ^= 255
        path.write_bytes(
            {
                "emptied": b"",
                "cut": content[:at],
                "zeros": bytes(len(content)),
                "other": b"no cache at all",
                "flipped": content,
            }[damage]
        )
    hits_of_a_call(triple)
    assert hits_of_a_call(triple) == 1


def test_damage_is_said_once(triple, tmp_path, said):
    hits_of_a_call(triple)
    for _ in range(2):
        for path in files_of(tmp_path):
            path.write_bytes(b"")
        assert hits_of_a_call(triple) == 0
    assert [text.split(str(tmp_path))[0] for text in said.messages] == ["compiled code in "]
    assert said.messages[0].endswith(
        "cannot be loaded, and is compiled again: EOFError: Ran out of input"
    )


def test_entry_of_an_older_source_is_not_taken_for_the_new_one(triple, tmp_path, said):
    hits_of_a_call(triple)
    entry, _ = files_of(tmp_path)
    older = entry.read_bytes()
    # The index of a new source is written, but the disk has no room for its entry.
    # Of another length, or Python would take its own cached code within the same second.
    module = module_of(tmp_path / "simple.py", SIMPLE.replace("3 *", "40 *"))
    assert jit.cached_njit(module.triple)(5) == 200
    entry.write_bytes(older)
    assert jit.cached_njit(module.triple)(5) == 200
    assert said.messages == []


def test_disk_without_room_costs_only_time(triple, tmp_path, said, monkeypatch):
    def refuse(files, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jit._CheckedFiles, "_open_for_write", refuse)
    assert [hits_of_a_call(triple), hits_of_a_call(triple)] == [0, 0]
    assert len(said.messages) == 1
    assert said.messages[0].startswith("compiled code cannot be cached")
    assert str(tmp_path) in said.messages[0]
    assert "No space left on device; NUMBA_CACHE_DIR sets another directory" in said.messages[0]
    monkeypatch.undo()
    assert [hits_of_a_call(triple), hits_of_a_call(triple)] == [0, 1]


def test_directory_that_vanishes_is_made_again(triple, tmp_path, said):
    function = jit.cached_njit(triple)
    shutil.rmtree(tmp_path / "__pycache__")
    assert function(5) == 15
    assert hits_of_a_call(triple) == 1
    assert said.messages == []


def test_files_that_can_be_neither_read_nor_replaced_cost_only_time(triple, tmp_path, said):
    hits_of_a_call(triple)
    for path in files_of(tmp_path):
        path.unlink()
        (path / "not empty").mkdir(parents=True)
    assert [hits_of_a_call(triple), hits_of_a_call(triple)] == [0, 0]
    assert len(said.messages) == 1
    assert said.messages[0].startswith("compiled code cannot be kept")


def test_lack_of_any_directory_is_said_where_something_is_compiled(triple, said, monkeypatch):
    def refuse(locator):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(jit.caching._CacheLocator, "ensure_cache_path", refuse)
    functions = [jit.cached_njit(triple) for _ in range(2)]
    assert said.messages == []
    assert [function(5) for function in functions] == [15, 15]
    assert len(said.messages) == 1
    assert "the user's cache can be written; NUMBA_CACHE_DIR" in said.messages[0]


IN_MANY_PROCESSES = """
import sys
sys.path.insert(0, sys.argv[1])
import simple
from fastrl.jit import cached_njit
from fastrl.workers import processes
from fastrl.workers.supervisor import call_in_child

def work():
    return cached_njit(simple.triple)(5)

processes._PRELOAD = processes._PRELOAD[:1]  # the rest takes seconds
print(call_in_child(work, 60), work())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each process says it")
def test_run_says_it_once_in_all_its_processes(triple, tmp_path):
    hits_of_a_call(triple)
    for path in files_of(tmp_path):
        path.unlink()
        (path / "not empty").mkdir(parents=True)
    command = [sys.executable, "-c", IN_MANY_PROCESSES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "15 15\n"
    assert done.stderr.count("compiled code cannot be kept") == len(done.stderr.splitlines()) == 1


def test_torch_makes_cuda_graphs_on_a_gpu_alone(monkeypatch):
    asked = []

    def refuse(function, **options):  # torch's compiler takes seconds to import
        asked.append(options["mode"])
        raise OSError

    monkeypatch.setattr(torch, "compile", refuse)
    for device in (CPU, torch.device("cuda:1")):
        jit.compiled_by_torch(lambda x: 2 * x, device, fullgraph=True)
    assert asked == ["default", "reduce-overhead"]


def test_torch_that_has_no_directory_to_compile_in_runs_uncompiled(said, monkeypatch):
    def refuse(function, **options):
        raise OSError(13, "Permission denied", "/cache")

    monkeypatch.setattr(torch, "compile", refuse)
    functions = [jit.compiled_by_torch(lambda x: 2 * x, CPU) for _ in range(2)]
    assert [function(3) for function in functions] == [6, 6]
    assert said.messages == [
        "torch cannot compile here, so the code runs uncompiled: PermissionError: [Errno 13] "
        "Permission denied: '/cache'; TORCHINDUCTOR_CACHE_DIR sets another directory"
    ]


@pytest.mark.slow  # imports torch's compiler
def test_torch_that_has_no_room_to_compile_runs_uncompiled(said, monkeypatch):
    def refuse(function, **options):
        def call(*args):
            full = OSError(28, "No space left on device")
            raise torch._dynamo.exc.BackendCompilerFailed("inductor", full, None)

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    function = jit.compiled_by_torch(lambda x: 2 * x, CPU)
    assert [function(3), function(4)] == [6, 8]
    assert len(said.messages) == 1
    assert "No space left on device" in said.messages[0]


class Scaled:
    def __init__(self, name):
        self._name = name

    def times(self, number):
        return number * len(self._name)


@pytest.mark.slow  # imports torch's compiler
def test_torch_compiles_a_method_of_any_number_of_objects():
    # torch itself gives up after 8 variants.
    compiled = [
        jit.compiled_by_torch(Scaled(n * "a").times, CPU, fullgraph=True, backend="eager")
        for n in range(10)
    ]
    found = [float(function(torch.ones(()))) for function in compiled]
    assert found == list(range(10))
