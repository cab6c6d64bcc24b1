"""Work that takes a given time of the processor, however fast that is, and what was taken."""

import time

import psutil


def busy(seconds):
    """Compute for so long; what others take of the core meanwhile does not count."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def used_s(pids):
    """Return the processor's time that processes have used."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(each.user + each.system for each in times)
