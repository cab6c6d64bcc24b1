"""What a candidate needs in memory is known before it is tried."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.shared.table import Schema, Table
from fastrl.spaces import TensorSpec
from fastrl.spec import LOG_PROB_AND_VALUE, EnvSpec
from fastrl.tuning import Candidate
from fastrl.tuning.workbench import MemoryNeed

SPEC = EnvSpec("x", spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Discrete(2))


def test_large_tables_and_many_processes_do_not_fit():
    need = MemoryNeed(
        Schema(SPEC), 128, process_bytes=100 * 2**20, env_bytes=2**20, most_bytes=2**32
    )
    assert need.fits(Candidate(16, 4))
    assert not need.fits(Candidate(1024, 4))
    assert not need.fits(Candidate(1, 32))
    # Two banks of observations alone are this large.
    assert need.of(Candidate(64, 2)) > 2 * 129 * 128 * 64 * 64 * 3


def test_the_table_is_as_large_as_its_fields():
    """Those that policy and environment declare, and all final observations, count as well."""
    spec = replace(SPEC, extras={"depth": TensorSpec((64, 64), torch.float32)})
    outputs = {**LOG_PROB_AND_VALUE, "features": TensorSpec((512,), torch.float32)}
    schemas = [
        Schema(SPEC), Schema(SPEC, outputs), Schema(spec),
        Schema(spec, outputs, ["final_observation"]),
    ]  # fmt: skip
    for schema in schemas:
        need = MemoryNeed(schema, 16, process_bytes=0, env_bytes=0, most_bytes=0)
        table = Table(schema, 16, 8)
        # Tensors begin at multiples of a cache line.
        assert need.of(Candidate(4, 2)) == pytest.approx(table.num_bytes, rel=1e-3)
        table.close()
