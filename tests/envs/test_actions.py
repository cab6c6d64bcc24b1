from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastrl.envs import ActionConverter
from fastrl.errors import SpaceError
from fastrl.spaces import action_specs

FINITE = st.floats(-1e6, 1e6, width=32)


def box(low, high, dtype=np.float32):
    return spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)


@given(arrays(np.float32, (3, 2), elements=FINITE), st.sampled_from([np.float32, np.float64]))
def test_clipped_actions_are_inside_and_those_inside_are_unchanged(rows, dtype):
    space = box([-1, 0], [1, 5], dtype)
    for action, row in zip(ActionConverter(space).split((rows,)), rows, strict=True):
        assert space.contains(action)
        assert action.dtype == dtype
        if space.contains(row.astype(dtype)):
            assert (action == row).all()


@given(arrays(np.float32, (3, 2), elements=FINITE), st.sampled_from([np.float32, np.float64]))
def test_squashed_actions_are_inside_and_keep_their_order(rows, dtype):
    space = box([-0.1, 2], [0.3, 7.7], dtype)
    actions = ActionConverter(space, "squash").batch((rows,))
    assert all(space.contains(action) for action in actions)
    order = np.argsort(rows, axis=0, kind="stable")
    assert (np.diff(np.take_along_axis(actions, order, axis=0), axis=0) >= 0).all()


def test_squash_by_numbers():
    rows = np.array([[0.0], [0.5], [-20.0], [20.0]], np.float32)
    actions = ActionConverter(box([2], [6]), "squash").batch((rows,))
    # tanh(0.5) is 0.46211716.
    np.testing.assert_allclose(actions.ravel(), [4.0, 4.92423431, 2.0, 6.0], rtol=1e-6)


def test_only_bounded_elements_are_clipped():
    space = box([-1, -np.inf, -np.inf], [1, np.inf, 3])
    rows = np.array([[9, 9, 9], [-9, -9, -9]], np.float32)
    assert ActionConverter(space).batch((rows,)).tolist() == [[1, 9, 3], [-1, -9, -9]]


@pytest.mark.parametrize(
    "space", [box([-np.inf], [1]), spaces.Dict(arm=spaces.Tuple([box([-1], [np.inf])]))]
)
def test_unbounded_box_cannot_be_squashed(space):
    with pytest.raises(SpaceError, match="'squash' needs a Box with finite bounds"):
        ActionConverter(space, "squash")


@pytest.mark.parametrize(
    "space",
    [spaces.Text(3), spaces.Box(0, 9, (2,), np.int64), spaces.Sequence(spaces.Discrete(2))],
)
def test_unsupported_space_is_refused(space):
    with pytest.raises(SpaceError, match="unsupported"):
        ActionConverter(space)


@pytest.mark.parametrize(
    ("space", "row", "expected"),
    [
        (spaces.Discrete(3), [0, 2], [0, 2]),
        (spaces.Discrete(3, start=-1), [0, 2], [-1, 1]),
        (spaces.Discrete(3, start=5, dtype=np.int32), [0, 2], [5, 7]),
        (spaces.MultiDiscrete([2, 3]), [[0, 2], [1, 1]], [[0, 2], [1, 1]]),
        (spaces.MultiDiscrete([2, 3], start=[4, -4]), [[0, 2], [1, 1]], [[4, -2], [5, -3]]),
        (
            spaces.MultiDiscrete([[2, 3]], start=[[1, 1]]),
            [[[0, 2]], [[1, 1]]],
            [[[1, 3]], [[2, 2]]],
        ),
        (spaces.MultiBinary(3), [[0, 1, 1], [1, 0, 0]], [[0, 1, 1], [1, 0, 0]]),
    ],
)
def test_discrete_actions_start_where_the_space_does(space, row, expected):
    (spec,) = action_specs(space).values()
    rows = (np.array(row, spec.numpy_dtype),)
    converter = ActionConverter(space)
    assert converter.batch(rows).tolist() == expected
    actions = converter.split(rows)
    assert [action.tolist() for action in actions] == expected
    assert all(space.contains(action) for action in actions)


def test_nested_actions_keep_their_structure():
    space = spaces.Dict(
        {
            "arm": spaces.Tuple([box([-1, -1], [1, 1]), spaces.Discrete(2, start=10)]),
            "grip": spaces.MultiBinary(2),
        }
    )
    rows = (
        np.array([[0.5, 3], [-3, 0]], np.float32),
        np.array([0, 1]),
        np.array([[0, 1], [1, 1]], np.int8),
    )
    converter = ActionConverter(space)
    first, second = converter.split(rows)
    assert space.contains(first)
    assert space.contains(second)
    assert first["arm"][0].tolist() == [0.5, 1.0]
    assert second["arm"][1] == 11
    assert second["grip"].tolist() == [1, 1]
    batch = converter.batch(rows)
    assert batch["arm"][0].tolist() == [[0.5, 1], [-1, 0]]
    assert batch["arm"][1].tolist() == [10, 11]
    assert batch["grip"].shape == (2, 2)


@pytest.mark.parametrize(
    "space",
    [
        box([-1, -1], [1, 1]),
        box([-np.inf, -np.inf], [np.inf, np.inf]),
        spaces.MultiDiscrete([5, 5]),
        spaces.MultiBinary(2),
    ],
)
def test_what_environments_get_is_theirs(space):
    (spec,) = action_specs(space).values()
    rows = (np.zeros((2, 2), spec.numpy_dtype),)
    converter = ActionConverter(space)
    given_away = [*converter.split(rows), converter.batch(rows), *converter.split(rows)]
    rows[0][:] = 1
    assert all((action == 0).all() for action in given_away)
    given_away[0][:] = 1
    assert (given_away[-1] == 0).all()
