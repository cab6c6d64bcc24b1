"""Work that takes a given CPU time, and the CPU time that processes took."""

import time

import psutil


def busy(seconds):
    """Compute for a given CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def used_s(pids):
    """Return the CPU time of processes."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(each.user + each.system for each in times)
