from __future__ import annotations

import pytest

from fastrl.cores import usable_cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 8 cores whose cgroup files are written by the test."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)

    def machine(cgroup: str, **files: str):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        for name, text in files.items():
            path = tmp_path / "sys/fs/cgroup" / name.replace("__", "/").replace("DOT", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return machine


def test_affinity_limits_where_there_is_no_cgroup(machine, tmp_path):
    machine("")
    assert usable_cores(tmp_path) == 8
    assert usable_cores(tmp_path / "nothing mounted") == 8


def test_quota_of_own_cgroup_limits(machine):
    root = machine("0::/job\n", job__cpuDOTmax="250000 100000\n", cpuDOTmax="max 100000\n")
    assert usable_cores(root) == 3


def test_quota_of_an_ancestor_limits(machine):
    root = machine("0::/slice/job\n", slice__cpuDOTmax="200000 100000\n")
    assert usable_cores(root) == 2


def test_quota_of_the_first_version_limits(machine):
    root = machine(
        "5:cpu,cpuacct:/job\n4:memory:/job\n",
        cpu__job__cpuDOTcfs_quota_us="400000\n",
        cpu__job__cpuDOTcfs_period_us="100000\n",
    )
    assert usable_cores(root) == 4


def test_no_quota_and_unreadable_quota_do_not_limit(machine):
    root = machine("0::/job\n", job__cpuDOTmax="max 100000\n", cpuDOTmax="what?")
    assert usable_cores(root) == 8


def test_a_sliver_of_a_core_is_one_core(machine):
    root = machine("0::/\n", cpuDOTmax="1000 100000\n")
    assert usable_cores(root) == 1
