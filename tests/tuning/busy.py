"""Work that takes a given time of the processor, however fast that is."""

import time


def busy(seconds):
    """Compute for so long; what others take of the core meanwhile does not count."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
