"""Cores, memory and versions of this machine, or of the container on it."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from importlib.machinery import ModuleSpec

import numpy as np
import psutil
import pytest
import torch

from fastrl.errors import FastrlError
from fastrl.shared.memory import SharedBlock
from fastrl.system import (
    circumstances,
    free_bytes,
    lack_of_memory,
    usable_cores,
    versions,
)


@pytest.fixture
def machine(tmp_path):
    """A machine whose cgroup files are written by the test."""

    def machine(cgroup, files):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        for name, text in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return machine


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_affinity_limits_where_there_is_no_cgroup(machine, eight_cores, tmp_path):
    machine("", {})
    assert usable_cores(tmp_path) == 8
    assert usable_cores(tmp_path / "nothing mounted") == 8


def test_quota_of_own_cgroup_limits(machine, eight_cores):
    root = machine("0::/job\n", {"job/cpu.max": "250000 100000\n", "cpu.max": "max 100000\n"})
    assert usable_cores(root) == 3


def test_quota_of_an_ancestor_limits(machine, eight_cores):
    root = machine("0::/slice/job\n", {"slice/cpu.max": "200000 100000\n"})
    assert usable_cores(root) == 2


def test_quota_of_the_first_version_limits(machine, eight_cores):
    root = machine(
        "5:cpu,cpuacct:/job\n4:memory:/job\n",
        {"cpu/job/cpu.cfs_quota_us": "400000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
    )
    assert usable_cores(root) == 4


def test_no_quota_and_unreadable_quota_do_not_limit(machine, eight_cores):
    root = machine("0::/job\n", {"job/cpu.max": "max 100000\n", "cpu.max": "what?"})
    assert usable_cores(root) == 8


def test_a_sliver_of_a_core_is_one_core(machine, eight_cores):
    root = machine("0::/\n", {"cpu.max": "1000 100000\n"})
    assert usable_cores(root) == 1


def test_machine_limits_where_there_is_no_cgroup(machine, tmp_path):
    machine("", {})
    for root in (tmp_path, tmp_path / "nothing mounted"):
        assert free_bytes(root) == pytest.approx(psutil.virtual_memory().available, rel=0.1)


def test_cgroup_limits_and_its_cache_of_files_does_not_count(machine):
    files = {
        "job/memory.max": "1000000\n",
        "job/memory.current": "700000\n",
        "job/memory.stat": "anon 300000\nfile 400000\ninactive_file 100000\nactive_file 50000\n",
        "memory.stat": "inactive_file 7\n",
    }
    assert free_bytes(machine("0::/job\n", files)) == 450_000


def test_ancestor_and_the_first_version_limit(machine):
    files = {
        "memory/slice/job/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/slice/job/memory.usage_in_bytes": "5000\n",
        "memory/slice/memory.limit_in_bytes": "800000\n",
        "memory/slice/memory.usage_in_bytes": "200000\n",
        "memory/slice/memory.stat": "cache 1\ntotal_inactive_file 10000\ntotal_active_file 1\n",
    }
    root = machine("5:cpu,cpuacct:/other\n4:memory:/slice/job\n", files)
    assert free_bytes(root) == 610_001


def test_full_cgroup_leaves_nothing_and_no_limit_is_none(machine):
    files = {"job/memory.max": "1000\n", "job/memory.current": "2000\n", "memory.max": "max\n"}
    assert free_bytes(machine("0::/job\n", files)) == 0


def test_shared_memory_that_the_container_has_not_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("fastrl.shared.memory.free_bytes", lambda: 2**20)
    SharedBlock(2**19).close()
    with pytest.raises(FastrlError, match="not enough memory for 2 MiB of shared tensors"):
        SharedBlock(2**21)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit has no effect")
def test_limit_on_the_address_space_is_one_line():
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        space = psutil.Process().memory_info().vms + 2**28
        resource.setrlimit(resource.RLIMIT_AS, (space, before[1]))
        assert free_bytes() <= 2**28
        with pytest.raises(FastrlError, match=r"^not enough memory for 512 MiB of .* MiB are free"):
            SharedBlock(2**29)
        with pytest.raises(MemoryError) as caught:
            bytearray(2**40)  # more than memory that is freed meanwhile may make possible
        told = lack_of_memory(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "MiB are free; raise the limit (ulimit -v), or lower" in told


def torch_allocates():
    torch.empty(2**44)


def numpy_allocates():
    np.empty((2**22, 2**22), np.float32)


def system_refuses():
    raise OSError(12, "Cannot allocate memory")


def library_does_not_fit():
    raise ImportError("libtorch_cpu.so: failed to map segment from shared object")


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        (torch_allocates, r"65,536\.0 GiB are asked for at once, and [\d,.]+ .iB are free; lower "),
        (numpy_allocates, r".*64\.0 TiB for an array with shape \(4194304, 4194304\) .*"),
        (system_refuses, r"OSError: \[Errno 12\] Cannot allocate memory, and .*"),
        (library_does_not_fit, r"ImportError: libtorch_cpu.so: failed to map .*"),
    ],
)
def test_lack_of_memory_is_one_line_with_the_sizes(fails, told):
    with pytest.raises((RuntimeError, MemoryError, OSError, ImportError)) as caught:
        fails()
    assert re.match(f"not enough memory: {told}", lack_of_memory(caught.value))


@pytest.mark.parametrize("error", [RuntimeError("boom"), OSError(28, "full"), ImportError("no")])
def test_other_errors_are_no_lack_of_memory(error):
    assert lack_of_memory(error) == ""


def test_circumstances_say_where_when_and_how(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/measure.py", "--env", "a b"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    found = circumstances()
    assert found["command"] == "python scripts/measure.py --env 'a b'"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert found["machine"]["cores"] == usable_cores()
    assert found["machine"]["memory_gib"] > 0
    # The version that is installed lacks the build, such as +cu130, where an index has one build.
    assert torch.__version__.startswith(found["versions"]["torch"])


@pytest.mark.parametrize("module", ["tests.measure", "tests.measure.__main__"])
def test_command_of_a_module_has_its_name_and_no_path_of_this_machine(monkeypatch, module):
    monkeypatch.setattr(sys, "argv", ["/somewhere/tests/measure/__main__.py", "--faults", "5"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec(module, None))
    assert circumstances()["command"] == "python -m tests.measure --faults 5"


def test_versions_of_what_is_not_installed_are_left_out():
    found = versions("pytest", "no-such-package")
    assert "pytest" in found
    assert "no-such-package" not in found
    assert found.items() >= versions().items()


SCRIPT = """
import ctypes, resource, sys
from fastrl.system import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for again in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(16 * 2**20) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, 16 * 2**20)
    for block in blocks:
        libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_kept_memory_costs_no_page_faults_again():
    pages = 4 * 16 * 2**20 // resource.getpagesize()
    assert faults("kept") < pages / 10


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_without_it_every_page_is_fetched_anew():
    pages = 4 * 16 * 2**20 // resource.getpagesize()
    assert faults("given back") > pages / 2
