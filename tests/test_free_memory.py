from __future__ import annotations

import psutil
import pytest

from fastrl.errors import FastrlError
from fastrl.free_memory import free_bytes
from fastrl.shared.memory import SharedBlock


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
