"""What a candidate needs in memory is known before it is tried."""

import numpy as np
from gymnasium import spaces

from fastrl.spec import EnvSpec
from fastrl.tuning import Candidate
from fastrl.tuning.memory import MemoryNeed

SPEC = EnvSpec("x", spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Discrete(2))


def test_large_tables_and_many_processes_do_not_fit():
    need = MemoryNeed(SPEC, 128, process_bytes=100 * 2**20, env_bytes=2**20, most_bytes=2**32)
    assert need.fits(Candidate(16, 4))
    assert not need.fits(Candidate(1024, 4))
    assert not need.fits(Candidate(1, 32))
    # Two banks of observations alone are this large.
    assert need.of(Candidate(64, 2)) > 2 * 129 * 128 * 64 * 64 * 3
