"""Arrays in one block of shared memory."""

import numpy as np
import psutil
import pytest

from fastrl.shared.memory import CACHE_LINE, SharedArrays

LAYOUT = [((3,), np.bool_), ((2, 5), np.float64), ((2,), object), ((0, 4), np.float32)]


@pytest.mark.parametrize("shared", [True, False])
def test_arrays_are_zeroed_and_have_the_shapes_and_dtypes_of_the_layout(shared):
    memory = SharedArrays(LAYOUT, shared=shared)
    assert [(each.shape, each.dtype.type) for each in memory.arrays] == [
        (shape, np.dtype(dtype).type) for shape, dtype in LAYOUT
    ]
    flags, numbers, objects, _ = memory.arrays
    assert not flags.any()
    assert not numbers.any()
    assert objects.tolist() == [None, None]
    memory.close()


def test_no_two_arrays_share_a_cache_line():
    memory = SharedArrays([((3,), np.bool_), ((9,), np.int64), ((1,), np.int64)])
    starts = [each.__array_interface__["data"][0] for each in memory.arrays]
    assert [start - starts[0] for start in starts] == [0, CACHE_LINE, 3 * CACHE_LINE]
    assert memory.num_bytes == 4 * CACHE_LINE
    memory.close()


def test_what_is_dropped_without_being_closed_keeps_no_descriptor():
    before = psutil.Process().num_fds()
    memory = SharedArrays(LAYOUT)
    assert psutil.Process().num_fds() > before
    del memory
    assert psutil.Process().num_fds() == before
