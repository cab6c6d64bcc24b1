"""Spaces that cannot be laid out as tensors are refused, and named."""

import numpy as np
import pytest
from gymnasium import spaces

from fastrl.errors import SpaceError
from fastrl.spaces import leaves

BIT = spaces.Discrete(2)
UNIT = spaces.Box(-1, 1, (2,), np.float32)


def test_leaves_are_named_by_their_paths():
    space = spaces.Dict({"a": spaces.Tuple((BIT, UNIT)), "b": spaces.Dict({"c": BIT})})
    assert list(leaves(space)) == ["a/0", "a/1", "b/c"]


@pytest.mark.parametrize(
    ("space", "path"),
    [
        (spaces.Dict({"a/b": BIT, "a": spaces.Dict({"b": BIT})}), "a/b"),
        (spaces.Dict({1: BIT, "1": BIT}), "1"),
    ],
)
def test_parts_of_the_same_name_are_refused(space, path):
    with pytest.raises(SpaceError, match=f"are called '{path}'; rename one of them"):
        leaves(space)


@pytest.mark.parametrize(
    "space",
    [
        None,
        "Box",
        spaces.Text(3),
        spaces.Sequence(BIT),
        spaces.Graph(UNIT, None),
        spaces.OneOf((BIT, UNIT)),
        spaces.Dict({}),
        spaces.Tuple(()),
        spaces.Box(-1, 1, (3, 0)),
    ],
)
def test_what_has_no_elements_of_a_fixed_number_is_refused(space):
    with pytest.raises(SpaceError, match=r"unsupported space|has no elements"):
        leaves(spaces.Dict({"inner": space}) if isinstance(space, spaces.Space) else space)


def test_a_text_names_the_wrapper_that_drops_it():
    space = spaces.Dict(image=spaces.Box(0, 1, (3,)), mission=spaces.Text(10))
    with pytest.raises(SpaceError, match=r"'mission'; .*minigrid\.wrappers:ImgObsWrapper"):
        leaves(space)
    with pytest.raises(SpaceError) as raised:
        leaves(spaces.Sequence(spaces.Discrete(2)))
    assert "minigrid" not in str(raised.value)
