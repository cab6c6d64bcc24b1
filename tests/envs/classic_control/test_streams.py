from __future__ import annotations

import numpy as np

from fastrl.envs.classic_control.control_batch import new_streams, peek


def test_outputs_are_those_of_the_published_generator():
    # SplitMix64 from state 1234567 gives 6457827717110365317, 3203168211198807973, …
    streams = np.array([[1234567], [0]], np.uint64)
    expected = np.array([6457827717110365317, 3203168211198807973], np.uint64)
    found = peek(streams, slice(None), 2)
    np.testing.assert_array_equal(found[0], (expected >> np.uint64(40)) / 2**24)


def test_numbers_go_on_from_the_count():
    streams = new_streams([5, 6])
    numbers = peek(streams, slice(None), 6)
    streams[1] += 2
    np.testing.assert_array_equal(peek(streams, slice(None), 4), numbers[:, 2:])
    np.testing.assert_array_equal(peek(streams, np.array([1]), 4), numbers[1:, 2:])


def test_numbers_are_uniform_and_streams_unrelated():
    numbers = peek(new_streams(range(1000)), slice(None), 100)
    assert 0 <= numbers.min() < 1e-3 < 1 - 1e-3 < numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    # 5,000 are expected in each bin, with a standard deviation of 69.
    assert np.abs(counts - 5000).max() < 350
    neighbours = np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]
    assert abs(neighbours) < 0.02


def test_seeds_of_any_size_are_taken():
    streams = new_streams([0, -1, 2**63, 2**64 + 7, 7])
    assert streams[0, 3] == streams[0, 4]
    assert len(set(streams[0].tolist())) == 4
