"""Compiled functions are kept on disk, and never outlive what they are made of."""

from __future__ import annotations

import subprocess
import sys

KERNEL = """
from pathlib import Path
import parts
from fastrl.compiled import cached_kernel

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
