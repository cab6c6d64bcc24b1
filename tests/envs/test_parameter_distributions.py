"""Draws are decided by the seed, and stay what they are: runs depend on them."""

from __future__ import annotations

import numpy as np
import pytest

from fastrl.envs.parameter_distributions import distribution


@pytest.mark.parametrize(
    ("specification", "expected"),
    [
        ({"uniform": [0.4, 0.6]}, [0.5273923374642908, 0.45395734275277405]),
        ({"log_uniform": [0.05, 0.2]}, [0.12090914560763368, 0.07267713369512938]),
        ({"normal": [9.8, 0.1]}, [9.81257302210934, 9.78678951367087]),
        ({"choice": [1, 2, 4]}, [4.0, 2.0]),
    ],
)
def test_draws_of_a_seed(specification, expected):
    drawn = distribution(specification, "length").sample(np.random.default_rng(0), (2,))
    assert drawn.tolist() == expected


def test_arrays_are_lists():
    choices = distribution({"choice": np.array([1, 2, 4])}, "length")
    assert [value.tolist() for value in choices.values] == [1, 2, 4]
    assert distribution({"uniform": np.array([0.4, 0.6])}, "length").kind == "uniform"


def test_numbers_broadcast_against_what_is_drawn():
    drawn = distribution({"uniform": [[0, 0, -12], [0, 0, -8]]}, "gravity")
    found = drawn.sample(np.random.default_rng(0), (2, 3))
    assert (found[:, :2] == 0).all()
    assert ((found[:, 2] >= -12) & (found[:, 2] < -8)).all()
    assert [end.tolist() for end in drawn.ends] == [[0, 0, -12], [0, 0, -8]]


@pytest.mark.parametrize(
    "specification",
    [{"choice": [[1, 10], [2, 20], [3, 30]]}, {"uniform": [[1, 10], [3, 30]]}],
)
def test_elements_of_arrays_are_drawn_each_for_itself_or_together(specification):
    drawn, generator = distribution(specification, "gear"), np.random.default_rng(0)
    apart = np.array([drawn.sample(generator, (2,)) for _ in range(30)])
    together = np.array([drawn.sample(generator, ()) for _ in range(30)])
    assert (apart[:, 0] * 10 != apart[:, 1]).any()
    np.testing.assert_allclose(together[:, 0] * 10, together[:, 1])
    assert len(np.unique(together[:, 0])) > 2
    for found in (apart, together):
        assert ((found >= drawn.ends[0]) & (found <= drawn.ends[1])).all()
