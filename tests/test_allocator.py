"""Memory that is freed and asked for again comes without page faults."""

import resource
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys
from fastrl.allocator import keep_freed_memory
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
